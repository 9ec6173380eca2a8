#include "io/table_cache.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "io/memory_store.h"

namespace platter {
namespace {

constexpr uint32_t kTable = 4096;

// Counts reads and lets a test stand inside one of them.
class SlowStore final : public Store {
 public:
  explicit SlowStore(MemoryStore& inner) : inner_(inner) {}
  std::atomic<int> reads{0};
  std::function<void()> in_read;

  Caps caps() const override { return inner_.caps(); }
  const std::string& name() const override { return inner_.name(); }
  bool writable() const override { return true; }
  Result<uint64_t> Size() const override { return inner_.Size(); }
  Result<> Read(uint64_t at, std::span<const iovec> into) override {
    ++reads;
    Result<> result = inner_.Read(at, into);
    if (in_read) in_read();
    return result;
  }
  Result<> Write(uint64_t at, std::span<const iovec> from) override {
    return inner_.Write(at, from);
  }
  Result<> Zero(Range range, bool unmap) override { return inner_.Zero(range, unmap); }
  Result<> Sync() override { return inner_.Sync(); }
  Result<> Resize(uint64_t size) override { return inner_.Resize(size); }
  Result<> Allocate(Range range) override { return inner_.Allocate(range); }
  Result<Run> FindRun(uint64_t at) override { return inner_.FindRun(at); }

 private:
  MemoryStore& inner_;
};

class TableCacheTest : public testing::Test {
 protected:
  static std::byte Fill(uint64_t offset) { return std::byte(0x40 + offset / kTable); }

  TableCacheTest() {
    for (uint64_t at = 0; at < 16 * kTable; at += kTable) {
      std::vector<std::byte> bytes(kTable, Fill(at));
      EXPECT_TRUE(memory_.Store::Write(at, bytes).has_value());
    }
  }
  void WriteOut(const std::vector<TableCache::Piece>& pieces) {
    for (const auto& piece : pieces) EXPECT_TRUE(store_.Store::Write(piece.offset, piece.bytes));
  }

  MemoryStore memory_;
  SlowStore store_{memory_};
  TableCache cache_{store_, "L2 table", kTable, 3 * kTable};
};

TEST_F(TableCacheTest, ReadsOnceAndKeeps) {
  EXPECT_FALSE(cache_.TryGet(kTable));
  {
    auto ref = cache_.Get(kTable);
    ASSERT_TRUE(ref.has_value());
    EXPECT_EQ(ref->bytes()[17], Fill(kTable));
    EXPECT_EQ(ref->offset(), kTable);
  }
  EXPECT_TRUE(cache_.TryGet(kTable));
  EXPECT_TRUE(cache_.Get(kTable).has_value());
  EXPECT_EQ(store_.reads, 1);
}

TEST_F(TableCacheTest, EvictsTheLeastRecentlyUsed) {
  for (uint64_t i : {0, 1, 2}) ASSERT_TRUE(cache_.Get(i * kTable).has_value());
  EXPECT_TRUE(cache_.TryGet(0));
  ASSERT_TRUE(cache_.Get(3 * kTable).has_value());
  EXPECT_TRUE(cache_.TryGet(0));
  EXPECT_FALSE(cache_.TryGet(1 * kTable));
  EXPECT_TRUE(cache_.TryGet(2 * kTable));
}

TEST_F(TableCacheTest, PinnedAndDirtyTablesStay) {
  auto pinned = cache_.Get(0);
  ASSERT_TRUE(pinned.has_value());
  {
    auto dirty = cache_.Get(kTable);
    ASSERT_TRUE(dirty.has_value());
    dirty->Edit(Range{8, 1})[0] = std::byte{1};
  }
  for (uint64_t i = 2; i < 16; ++i) ASSERT_TRUE(cache_.Get(i * kTable).has_value());
  EXPECT_TRUE(cache_.TryGet(0));
  auto dirty = cache_.TryGet(kTable);
  ASSERT_TRUE(dirty);
  EXPECT_EQ(dirty.bytes()[8], std::byte{1});
}

// However the pin came about: by a load, by finding the table idle, or as the second of two.
TEST_F(TableCacheTest, EveryPinKeepsItsTable) {
  auto pass_by = [&] {
    for (uint64_t i = 4; i < 16; ++i) ASSERT_TRUE(cache_.Get(i * kTable).has_value());
  };
  auto first = *cache_.Get(0);
  {
    auto second = cache_.TryGet(0);  // given back while the first lives on
  }
  pass_by();
  EXPECT_TRUE(cache_.TryGet(0));

  ASSERT_TRUE(cache_.Get(kTable).has_value());  // idle from here on
  auto tried = cache_.TryGet(kTable);
  pass_by();
  EXPECT_TRUE(cache_.TryGet(kTable));

  ASSERT_TRUE(cache_.Get(2 * kTable).has_value());
  auto got = *cache_.Get(2 * kTable);
  pass_by();
  EXPECT_TRUE(cache_.TryGet(2 * kTable));
}

TEST_F(TableCacheTest, ErrorNamesTableOffsetAndReason) {
  auto ref = cache_.Get(16 * kTable - 512);
  ASSERT_FALSE(ref.has_value());
  EXPECT_EQ(ref.error().code(), Code::kCorrupt);
  EXPECT_EQ(ref.error().text(),
            "L2 table at 0xfe00: 'memory': 4096 bytes at 0xfe00 reach past the end of the file "
            "(size 0x10000)");
  // A failure is not kept.
  ASSERT_TRUE(memory_.Resize(17 * kTable).has_value());
  EXPECT_TRUE(cache_.Get(16 * kTable - 512).has_value());
}

TEST_F(TableCacheTest, DirtySectorsComeOutMergedAndAscending) {
  auto high = *cache_.Get(2 * kTable);
  auto low = *cache_.Get(kTable);
  high.Edit(Range{4095, 1})[0] = std::byte{9};
  low.Edit(Range{511, 2})[1] = std::byte{8};  // two sectors
  low.Edit(Range{2048, 8});
  EXPECT_EQ(cache_.dirty_bytes(), 4 * 512u);
  auto pieces = cache_.TakeDirty();
  ASSERT_EQ(pieces.size(), 3u);
  EXPECT_EQ(pieces[0].offset, kTable);
  EXPECT_EQ(pieces[0].bytes.size(), 1024u);
  EXPECT_EQ(pieces[0].bytes[512], std::byte{8});
  EXPECT_EQ(pieces[0].bytes[513], Fill(kTable));
  EXPECT_EQ(pieces[1].offset, kTable + 2048);
  EXPECT_EQ(pieces[2].offset, 2 * kTable + 3584);
  EXPECT_EQ(pieces[2].bytes[511], std::byte{9});
  EXPECT_EQ(cache_.dirty_bytes(), 0u);
  EXPECT_TRUE(cache_.TakeDirty().empty());
  cache_.Written(pieces);
}

TEST_F(TableCacheTest, SmallTablesEndTheirLastSectorEarly) {
  TableCache small(store_, "BAT", 100, 1000);
  auto ref = *small.Get(300);
  ref.Edit(Range{99, 1});
  auto pieces = small.TakeDirty();
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_EQ(pieces[0].offset, 300u);
  EXPECT_EQ(pieces[0].bytes.size(), 100u);
  small.Written(pieces);
}

// The store holds old bytes until the pieces are written: a reload then would lose the edit.
TEST_F(TableCacheTest, TakenTablesAreNotEvictedBeforeTheyAreWritten) {
  {
    auto ref = *cache_.Get(0);
    ref.Edit(Range{0, 1})[0] = std::byte{1};
  }
  auto pieces = cache_.TakeDirty();
  for (uint64_t i = 1; i < 16; ++i) ASSERT_TRUE(cache_.Get(i * kTable).has_value());
  ASSERT_TRUE(cache_.TryGet(0));
  EXPECT_EQ(cache_.TryGet(0).bytes()[0], std::byte{1});
  WriteOut(pieces);
  cache_.Written(pieces);
  for (uint64_t i = 1; i < 16; ++i) ASSERT_TRUE(cache_.Get(i * kTable).has_value());
  EXPECT_FALSE(cache_.TryGet(0));
  EXPECT_EQ(cache_.Get(0)->bytes()[0], std::byte{1});
}

// A Ref that is let go meanwhile does not make them evictable, nor does one piece of two.
TEST_F(TableCacheTest, TakenTablesStayUntilTheirLastPieceIsWritten) {
  {
    auto ref = *cache_.Get(0);
    ref.Edit(Range{0, 1})[0] = std::byte{1};
    ref.Edit(Range{2048, 1})[0] = std::byte{2};
  }
  auto pieces = cache_.TakeDirty();
  ASSERT_EQ(pieces.size(), 2u);
  auto pass_by = [&] {
    for (uint64_t i = 1; i < 16; ++i) ASSERT_TRUE(cache_.Get(i * kTable).has_value());
  };
  ASSERT_TRUE(cache_.TryGet(0));
  pass_by();
  ASSERT_TRUE(cache_.TryGet(0));
  EXPECT_EQ(cache_.TryGet(0).bytes()[2048], std::byte{2});
  cache_.Written({pieces[0]});
  pass_by();
  ASSERT_TRUE(cache_.TryGet(0));
  WriteOut(pieces);
  cache_.Written({pieces[1]});
  pass_by();
  EXPECT_FALSE(cache_.TryGet(0));
}

TEST_F(TableCacheTest, EditsAfterTakeBelongToTheNextFlush) {
  auto ref = *cache_.Get(0);
  ref.Edit(Range{0, 1})[0] = std::byte{1};
  auto first = cache_.TakeDirty();
  ref.Edit(Range{1, 1})[0] = std::byte{2};
  EXPECT_EQ(first[0].bytes[1], Fill(0));
  cache_.Written(first);
  auto second = cache_.TakeDirty();
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].bytes[1], std::byte{2});
  cache_.Written(second);
}

TEST_F(TableCacheTest, PutBackReturnsWhatTheTableHoldsNow) {
  auto ref = *cache_.Get(0);
  ref.Edit(Range{0, 1})[0] = std::byte{1};
  ref.Edit(Range{1024, 1})[0] = std::byte{1};
  auto first = cache_.TakeDirty();
  ref.Edit(Range{0, 1})[0] = std::byte{2};
  EXPECT_EQ(cache_.dirty_bytes(), 512u);
  cache_.PutBack(first);
  EXPECT_EQ(cache_.dirty_bytes(), 1024u);
  auto second = cache_.TakeDirty();
  ASSERT_EQ(second.size(), 2u);
  EXPECT_EQ(second[0].bytes[0], std::byte{2});
  EXPECT_EQ(second[1].bytes[0], std::byte{1});
  cache_.Written(second);
}

TEST_F(TableCacheTest, FreshIsZerosAndDirtyAndReplaces) {
  ASSERT_TRUE(cache_.Get(0).has_value());
  {
    auto fresh = cache_.Fresh(0);
    EXPECT_TRUE(IsZero(fresh.bytes()));
    fresh.Edit(Range{7, 1})[0] = std::byte{7};
  }
  EXPECT_EQ(cache_.dirty_bytes(), kTable);
  EXPECT_EQ(cache_.Get(0)->bytes()[7], std::byte{7});
  auto pieces = cache_.TakeDirty();
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_EQ(pieces[0].bytes.size(), kTable);
  cache_.Written(pieces);
}

TEST_F(TableCacheTest, ForgetDropsWhatIsDirty) {
  cache_.Fresh(0);
  EXPECT_TRUE(cache_.Forget(0));
  EXPECT_EQ(cache_.dirty_bytes(), 0u);
  EXPECT_TRUE(cache_.TakeDirty().empty());
  EXPECT_FALSE(cache_.TryGet(0));
  EXPECT_EQ(cache_.Get(0)->bytes()[0], Fill(0));
}

// A flush is under way while a table's space is freed and becomes another table.
TEST_F(TableCacheTest, PiecesOfAForgottenTableDoNotTouchItsSuccessor) {
  cache_.Fresh(0);
  auto old = cache_.TakeDirty();
  EXPECT_FALSE(cache_.Forget(0)) << "a piece is out: the space is not free yet";
  cache_.Fresh(0).Edit(Range{0, 1})[0] = std::byte{5};
  auto fresh = cache_.TakeDirty();  // the flush of the old one failed before this one began
  cache_.PutBack(old);
  EXPECT_EQ(cache_.dirty_bytes(), 0u) << "the old table's sectors are not the new one's";
  cache_.Written(fresh);
}

TEST_F(TableCacheTest, TwoFlushesAtOnceAreAProgrammersError) {
  auto ref = *cache_.Get(0);
  ref.Edit(Range{0, 1});
  auto pieces = cache_.TakeDirty();
  ref.Edit(Range{0, 1});
  EXPECT_DEATH((void)cache_.TakeDirty(), "out == 0");
  cache_.Written(pieces);
}

// The space of a table that is being loaded is freed and becomes a fresh one.
TEST_F(TableCacheTest, ALoadInFlightDoesNotCoverAFreshTable) {
  store_.in_read = [&] {
    store_.in_read = nullptr;
    cache_.Forget(0);
    cache_.Fresh(0).Edit(Range{0, 1})[0] = std::byte{3};
  };
  auto ref = cache_.Get(0);
  ASSERT_TRUE(ref.has_value());
  EXPECT_EQ(ref->bytes()[0], std::byte{3});
  EXPECT_EQ(cache_.TryGet(0).bytes()[0], std::byte{3});
  EXPECT_EQ(cache_.dirty_bytes(), kTable);
}

TEST_F(TableCacheTest, EditsThroughAnOldRefAreLost) {
  auto old = *cache_.Get(0);
  cache_.Forget(0);
  old.Edit(Range{0, 1})[0] = std::byte{1};
  EXPECT_EQ(cache_.dirty_bytes(), 0u);
  EXPECT_EQ(cache_.Get(0)->bytes()[0], Fill(0));
}

TEST_F(TableCacheTest, TwoThreadsShareOneLoad) {
  std::atomic<bool> other_waits{false};
  std::thread other;
  store_.in_read = [&] {
    other = std::thread([&] {
      other_waits = true;
      auto ref = cache_.Get(0);
      EXPECT_EQ(ref->bytes()[0], Fill(0));
    });
    while (!other_waits) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  EXPECT_TRUE(cache_.Get(0).has_value());
  other.join();
  EXPECT_EQ(store_.reads, 1);
}

// Threads edit counters under one metadata lock while another flushes, with a tiny cache: whatever
// order of loads, evictions and write-backs, no increment is lost.
TEST(TableCacheThreads, NoEditIsLost) {
  constexpr int kTables = 12, kThreads = 4, kEdits = 2000;
  MemoryStore store(kTables * 512);
  TableCache cache(store, "table", 512, 2 * 512);
  Mutex metadata;
  std::atomic<bool> stop{false};
  auto flush = [&] {
    std::vector<TableCache::Piece> pieces;
    {
      std::lock_guard lock(metadata);
      pieces = cache.TakeDirty();
    }
    bool fail = pieces.size() % 3 == 1;  // now and then the write fails
    if (!fail) {
      for (const auto& piece : pieces) EXPECT_TRUE(store.Store::Write(piece.offset, piece.bytes));
    }
    std::lock_guard lock(metadata);
    fail ? cache.PutBack(pieces) : cache.Written(pieces);
  };
  std::thread flusher([&] {
    while (!stop) {
      flush();
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::minstd_rand random(t + 1);
      for (int i = 0; i < kEdits; ++i) {
        uint64_t offset = random() % kTables * 512;
        auto loaded = cache.Get(offset);
        ASSERT_TRUE(loaded.has_value());
        std::lock_guard lock(metadata);
        auto ref = cache.TryGet(offset);
        ASSERT_TRUE(ref) << "pinned, so still there";
        Bytes bytes = ref.Edit(Range{8, 4});
        uint32_t count;
        std::memcpy(&count, bytes.data(), 4);
        ++count;
        std::memcpy(bytes.data(), &count, 4);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  stop = true;
  flusher.join();
  while (cache.dirty_bytes() > 0) {
    auto pieces = cache.TakeDirty();
    for (const auto& piece : pieces) EXPECT_TRUE(store.Store::Write(piece.offset, piece.bytes));
    cache.Written(pieces);
  }
  uint64_t sum = 0;
  for (int i = 0; i < kTables; ++i) {
    uint32_t count;
    std::array<std::byte, 4> bytes;
    ASSERT_TRUE(store.Store::Read(i * 512 + 8, bytes).has_value());
    std::memcpy(&count, bytes.data(), 4);
    sum += count;
  }
  EXPECT_EQ(sum, uint64_t{kThreads} * kEdits);
}

}  // namespace
}  // namespace platter
