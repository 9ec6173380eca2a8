#include "io/crash_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "base/math.h"

namespace platter {
namespace {

std::vector<std::byte> Fill(size_t size, int value) {
  return std::vector<std::byte>(size, std::byte(value));
}

// The bytes of a small image, padded with -1 so that its length shows.
int At(MemoryStore& store, uint64_t at) {
  std::array<std::byte, 1> byte;
  return store.Read(at, byte).has_value() ? static_cast<int>(byte[0]) : -1;
}

TEST(CrashStore, SyncedDataIsAlwaysThere) {
  CrashRecorder recorder;
  auto store = recorder.NewStore();
  ASSERT_TRUE(store->Write(0, Fill(1024, 1)).has_value());
  ASSERT_TRUE(store->Sync().has_value());
  EXPECT_EQ(recorder.boundary(), 2u);
  uint64_t acknowledged = recorder.boundary();
  ASSERT_TRUE(store->Write(512, Fill(512, 2)).has_value());
  for (uint64_t seed = 0; seed < 50; ++seed) {
    auto disk = recorder.Crash(acknowledged, seed);
    EXPECT_EQ(disk->Contents(), Fill(1024, 1));
    disk = recorder.Crash(recorder.boundary(), seed);
    EXPECT_EQ(At(*disk, 0), 1);
  }
}

TEST(CrashStore, SeedsZeroAndOneAreNothingAndAll) {
  CrashRecorder recorder;
  auto store = recorder.NewStore("disk", 4096);
  ASSERT_TRUE(store->Write(100, Fill(1000, 1)).has_value());
  ASSERT_TRUE(store->Zero(Range{200, 100}, true).has_value());
  ASSERT_TRUE(store->Write(8000, Fill(10, 3)).has_value());
  EXPECT_EQ(recorder.Crash(3, 0)->Contents(), Fill(4096, 0));
  std::vector<std::byte> now(*store->Size());
  ASSERT_TRUE(store->Read(0, now).has_value());
  EXPECT_EQ(recorder.Crash(3, 1)->Contents(), now);
  EXPECT_EQ(*recorder.Crash(2, 1)->Size(), 4096u) << "the third event has not happened";
}

// Every subset of three unsynced writes turns up, and every tearing of a write of two sectors.
TEST(CrashStore, AllSubsetsAndTearsTurnUp) {
  CrashRecorder recorder;
  auto store = recorder.NewStore("disk", 2048);
  ASSERT_TRUE(store->Write(0, Fill(1024, 1)).has_value());
  ASSERT_TRUE(store->Write(1024, Fill(512, 2)).has_value());
  ASSERT_TRUE(store->Write(1536, Fill(512, 3)).has_value());
  std::set<std::vector<int>> seen;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    auto disk = recorder.Crash(3, seed);
    std::vector<int> sectors;
    for (uint64_t at : {0, 512, 1024, 1536}) {
      sectors.push_back(At(*disk, at));
      EXPECT_EQ(At(*disk, at), At(*disk, at + 511)) << "sectors are whole";
    }
    seen.insert(sectors);
  }
  EXPECT_EQ(seen.size(), 16u);
}

TEST(CrashStore, OverwritesComeInAnyOrder) {
  CrashRecorder recorder;
  auto store = recorder.NewStore("disk", 512);
  for (int i = 1; i <= 3; ++i) ASSERT_TRUE(store->Write(0, Fill(512, i)).has_value());
  std::set<int> seen;
  for (uint64_t seed = 0; seed < 100; ++seed) seen.insert(At(*recorder.Crash(3, seed), 0));
  EXPECT_EQ(seen, (std::set{0, 1, 2, 3}));
}

// A later write to a sector carries the earlier ones to the same sector with it.
TEST(CrashStore, PartsOfASectorKeepTheirOrder) {
  CrashRecorder recorder;
  auto store = recorder.NewStore("disk", 512);
  ASSERT_TRUE(store->Write(0, Fill(8, 1)).has_value());
  ASSERT_TRUE(store->Write(8, Fill(8, 2)).has_value());
  std::set<std::pair<int, int>> seen;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    auto disk = recorder.Crash(2, seed);
    seen.insert({At(*disk, 0), At(*disk, 8)});
  }
  EXPECT_EQ(seen, (std::set<std::pair<int, int>>{{0, 0}, {1, 0}, {1, 2}}));
}

TEST(CrashStore, TheLengthIsOnItsOwn) {
  CrashRecorder recorder;
  auto store = recorder.NewStore("disk", 0);
  ASSERT_TRUE(store->Write(0, Fill(512, 1)).has_value());
  std::set<int> seen;
  for (uint64_t seed = 0; seed < 200; ++seed) seen.insert(At(*recorder.Crash(1, seed), 0));
  EXPECT_EQ(seen, (std::set{-1, 0, 1})) << "no length; a length and no data; both";
}

TEST(CrashStore, CutBytesDoNotComeBack) {
  CrashRecorder recorder;
  auto store = recorder.NewStore("disk", 0);
  ASSERT_TRUE(store->Write(0, Fill(2048, 1)).has_value());
  ASSERT_TRUE(store->Sync().has_value());
  ASSERT_TRUE(store->Resize(512).has_value());
  ASSERT_TRUE(store->Resize(4096).has_value());
  for (uint64_t seed = 0; seed < 200; ++seed) {
    auto disk = recorder.Crash(recorder.boundary(), seed);
    uint64_t size = *disk->Size();
    EXPECT_TRUE(size == 2048 || size == 512 || size == 4096) << size;
    EXPECT_EQ(At(*disk, 0), 1);
    if (size == 4096) {
      EXPECT_EQ(At(*disk, 1024), 0);
    }
  }
}

TEST(CrashStore, ZeroingTerabytesIsCheap) {
  CrashRecorder recorder;
  auto store = recorder.NewStore("disk", 64 * kTiB);
  ASSERT_TRUE(store->Write(40 * kTiB, Fill(512, 1)).has_value());
  ASSERT_TRUE(store->Sync().has_value());
  ASSERT_TRUE(store->Zero(Range{0, 64 * kTiB}, true).has_value());
  std::set<int> seen;
  for (uint64_t seed = 0; seed < 20; ++seed) seen.insert(At(*recorder.Crash(3, seed), 40 * kTiB));
  EXPECT_EQ(seen, (std::set{0, 1}));
}

TEST(CrashStore, StoresShareTheCountAndSyncAlone) {
  CrashRecorder recorder;
  auto image = recorder.NewStore("image", 512);
  MemoryStore initial(ConstBytes(Fill(512, 9)), {.name = "data"});
  auto data = recorder.NewStore(initial);
  ASSERT_TRUE(image->Write(0, Fill(512, 1)).has_value());
  ASSERT_TRUE(data->Write(0, Fill(512, 2)).has_value());
  ASSERT_TRUE(data->Sync().has_value());
  EXPECT_EQ(recorder.boundary(), 3u);
  EXPECT_EQ(At(*recorder.Crash(3, 0, 0), 0), 0);
  EXPECT_EQ(At(*recorder.Crash(3, 0, 1), 0), 2);
  EXPECT_EQ(At(*recorder.Crash(2, 0, 1), 0), 9);
  EXPECT_EQ(data->name(), "data");
}

// A journal of one record that is right: data, Sync, header, Sync. And one that forgets the first
// Sync: the recorder must find the crash in which the header points at nothing.
TEST(CrashStore, FindsAMissingBarrier) {
  for (bool barrier : {true, false}) {
    CrashRecorder recorder;
    auto store = recorder.NewStore("disk", 8192);
    ASSERT_TRUE(store->Write(4096, Fill(4096, 7)).has_value());
    ASSERT_TRUE(!barrier || store->Sync().has_value());
    ASSERT_TRUE(store->Write(0, Fill(512, 1)).has_value());
    ASSERT_TRUE(store->Sync().has_value());
    bool broken = false;
    for (uint64_t b = 0; b <= recorder.boundary(); ++b) {
      for (uint64_t seed = 0; seed < 8; ++seed) {
        auto disk = recorder.Crash(b, seed);
        if (At(*disk, 0) != 1) continue;
        for (uint64_t at = 4096; at < 8192; at += 512) broken |= At(*disk, at) != 7;
      }
    }
    EXPECT_EQ(broken, !barrier);
  }
}

// Every sector of every crash holds one of the contents it has had since the last sync.
TEST(CrashStore, RandomHistoriesHoldOnlyWhatWasThere) {
  constexpr uint64_t kSectors = 24;
  std::minstd_rand random(5);
  for (int round = 0; round < 10; ++round) {
    CrashRecorder recorder;
    auto store = recorder.NewStore("disk", kSectors * 512);
    std::vector<std::vector<std::byte>> states;  // by boundary
    std::vector<uint64_t> synced;                // by boundary: the last durable one
    auto remember = [&](bool sync) {
      std::vector<std::byte> now(kSectors * 512);
      ASSERT_TRUE(store->Read(0, now).has_value());
      states.push_back(now);
      synced.push_back(sync || synced.empty() ? states.size() - 1 : synced.back());
    };
    remember(true);
    for (int i = 0; i < 40; ++i) {
      uint64_t at = random() % (kSectors * 512), length = random() % (kSectors * 512 - at) / 3;
      bool sync = random() % 8 == 0;
      if (sync) {
        ASSERT_TRUE(store->Sync().has_value());
      } else if (random() % 4 == 0) {
        ASSERT_TRUE(store->Zero(Range{at, length}, true).has_value());
      } else {
        ASSERT_TRUE(store->Write(at, Fill(length, 1 + i)).has_value());
      }
      remember(sync);
    }
    for (uint64_t b = 0; b <= recorder.boundary(); ++b) {
      for (uint64_t seed = 0; seed < 12; ++seed) {
        auto disk = recorder.Crash(b, seed)->Contents();
        for (uint64_t s = 0; s < kSectors; ++s) {
          bool known = false;
          for (uint64_t v = synced[b]; v <= b && !known; ++v) {
            known = std::equal(disk.begin() + s * 512, disk.begin() + (s + 1) * 512,
                               states[v].begin() + s * 512);
          }
          ASSERT_TRUE(known) << "boundary " << b << " seed " << seed << " sector " << s;
        }
      }
    }
  }
}

}  // namespace
}  // namespace platter
