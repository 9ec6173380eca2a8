// The log: which entries count, how a file reads once they are replayed, and what our own journal
// leaves whenever the power fails.
#include "formats/vhdx/vhdx_log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_image.h"
#include "formats/vhdx/vhdx_journal.h"
#include "formats/vhdx/vhdx_subjects_testing.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"

namespace platter::vhdx {
namespace {

std::vector<std::byte> Page(uint8_t value) {
  return std::vector<std::byte>(kLogSector, static_cast<std::byte>(value));
}

// A file of 8 MiB with a log of 1 MiB at 1 MiB.
class LogTest : public testing::Test {
 protected:
  LogTest() : file_(8 * kMiB) {
    header_.log = {kMiB, kMiB};
    header_.log_id.fill(std::byte{7});
  }

  // Writes an entry at `at` of the log; `spoil` may change its bytes.
  uint64_t Put(uint64_t at, uint64_t sequence, uint64_t tail, const std::vector<LogPage>& pages,
               const std::vector<Range>& zeros = {},
               const std::function<void(LogEntry&)>& change = {}) {
    LogEntry entry;
    entry.sequence = sequence;
    entry.tail = static_cast<uint32_t>(tail);
    entry.log_id = header_.log_id;
    entry.flushed_size = entry.last_size = 8 * kMiB;
    if (change) change(entry);
    std::vector<std::byte> bytes = BuildLogEntry(entry, pages, zeros);
    for (size_t i = 0; i < bytes.size(); i += kLogSector) {
      uint64_t place = (at + i) % header_.log.length;
      EXPECT_TRUE(
          file_.Write(header_.log.offset + place, ConstBytes(bytes).subspan(i, kLogSector)));
    }
    return (at + bytes.size()) % header_.log.length;
  }

  // The first byte at `at` of the file as it reads once the log is replayed; -1 on failure.
  int ByteAt(uint64_t at) {
    auto sequence = FindSequence(file_, header_);
    if (!sequence || !*sequence) return -1;
    auto changes = LogChanges::Load(file_, header_, **sequence);
    if (!changes) return -1;
    ReplayedStore store(file_, std::move(*changes));
    std::byte value{};
    EXPECT_TRUE(store.Read(at, Bytes(&value, 1)));
    return std::to_integer<int>(value);
  }

  std::string Failure() {
    auto sequence = FindSequence(file_, header_);
    if (!sequence) return sequence.error().text();
    if (!*sequence) return "empty";
    auto changes = LogChanges::Load(file_, header_, **sequence);
    return changes ? "" : changes.error().text();
  }

  MemoryStore file_;
  Header header_;
};

TEST_F(LogTest, IsEmptyWithoutEntries) { EXPECT_EQ(Failure(), "empty"); }

TEST_F(LogTest, LaterEntriesOfTheSequenceWin) {
  uint64_t at = Put(0, 5, 0, {{4 * kMiB, Page(1)}, {5 * kMiB, Page(2)}});
  Put(at, 6, 0, {{4 * kMiB, Page(3)}});
  EXPECT_EQ(ByteAt(4 * kMiB), 3);
  EXPECT_EQ(ByteAt(4 * kMiB + 4095), 3);
  EXPECT_EQ(ByteAt(5 * kMiB), 2);
  EXPECT_EQ(ByteAt(5 * kMiB + 4096), 0);
}

TEST_F(LogTest, WhatTheTailLeavesOutIsInPlaceAlready) {
  uint64_t at = Put(0, 5, 0, {{5 * kMiB, Page(2)}});
  Put(at, 6, at, {{4 * kMiB, Page(3)}});
  EXPECT_EQ(ByteAt(4 * kMiB), 3);
  EXPECT_EQ(ByteAt(5 * kMiB), 0);
}

TEST_F(LogTest, EntriesGoOnAtTheStart) {
  const uint64_t at = kMiB - 2 * kLogSector;
  uint64_t next = Put(at, 9, at, {{4 * kMiB, Page(1)}, {5 * kMiB, Page(2)}});
  EXPECT_EQ(next, kLogSector);
  Put(next, 10, at, {{6 * kMiB, Page(4)}});
  EXPECT_EQ(ByteAt(5 * kMiB), 2);
  EXPECT_EQ(ByteAt(6 * kMiB), 4);
}

TEST_F(LogTest, ZerosCutWhatWasBefore) {
  ASSERT_TRUE(file_.Write(4 * kMiB, ConstBytes(Page(9))));
  uint64_t at = Put(0, 1, 0, {{4 * kMiB + 8192, Page(1)}, {4 * kMiB + 16384, Page(2)}});
  at = Put(at, 2, 0, {}, {{4 * kMiB, 12288}});
  Put(at, 3, 0, {{4 * kMiB + 4096, Page(5)}});
  EXPECT_EQ(ByteAt(4 * kMiB), 0);
  EXPECT_EQ(ByteAt(4 * kMiB + 4096), 5);
  EXPECT_EQ(ByteAt(4 * kMiB + 8192), 0);
  EXPECT_EQ(ByteAt(4 * kMiB + 16384), 2);
}

TEST_F(LogTest, ATornEntryIsNotThere) {
  uint64_t at = Put(0, 5, 0, {{4 * kMiB, Page(1)}});
  Put(at, 6, at, {{4 * kMiB, Page(2)}});
  // Half of its data sector never arrived.
  ASSERT_TRUE(file_.Zero({kMiB + at + kLogSector + 2048, 2048}, false));
  EXPECT_EQ(ByteAt(4 * kMiB), 1);
}

TEST_F(LogTest, StaleEntriesAndThoseOfOtherLogsDoNotCount) {
  Put(512 * kKiB, 4, 512 * kKiB, {{4 * kMiB, Page(1)}});
  Put(0, 7, 0, {{4 * kMiB, Page(2)}});
  Put(768 * kKiB, 8, 768 * kKiB, {{4 * kMiB, Page(3)}}, {},
      [](LogEntry& entry) { entry.log_id.fill(std::byte{8}); });
  EXPECT_EQ(ByteAt(4 * kMiB), 2);
}

TEST_F(LogTest, RefusesWhatIsWholeAndWrong) {
  auto put = [&](const std::function<void(LogEntry&)>& change, Range zero = {4 * kMiB, 4096}) {
    Put(0, 5, 0, {}, {zero}, change);
    return Failure();
  };
  EXPECT_NE(put([](LogEntry& e) { e.tail = 4096; }).find("names a tail"), std::string::npos);
  EXPECT_NE(put([](LogEntry& e) { e.flushed_size = 9 * kMiB; }).find("was cut"), std::string::npos);
  EXPECT_NE(put([](LogEntry& e) { e.last_size = uint64_t{1} << 60; }).find("have to grow"),
            std::string::npos);
  EXPECT_NE(put({}, {4 * kMiB + 512, 4096}).find("not aligned"), std::string::npos);
  EXPECT_NE(put({}, {kMiB, 4096}).find("no place for it"), std::string::npos);
  EXPECT_NE(put({}, {64 * kKiB, 4096}).find("no place for it"), std::string::npos);
  EXPECT_NE(put({}, {~uint64_t{4095}, 8192}).find("past 2^64"), std::string::npos);
  EXPECT_NE(put({}, {4 * kMiB, uint64_t{1} << 62}).find("past the end"), std::string::npos);
}

TEST_F(LogTest, AFileMayGrow) {
  Put(0, 5, 0, {{9 * kMiB, Page(6)}}, {}, [](LogEntry& e) { e.last_size = 10 * kMiB; });
  EXPECT_EQ(ByteAt(9 * kMiB), 6);
  auto sequence = FindSequence(file_, header_);
  ASSERT_TRUE(sequence && *sequence);
  auto changes = LogChanges::Load(file_, header_, **sequence);
  ASSERT_TRUE(changes);
  ASSERT_TRUE(changes->Apply(file_));
  EXPECT_EQ(file_.Size().value(), 10 * kMiB);
  std::vector<std::byte> got(kLogSector);
  ASSERT_TRUE(file_.Read(9 * kMiB, Bytes(got)));
  EXPECT_EQ(got, Page(6));
}

TEST(Journal, TakesHalfOfTheLog) {
  MemoryStore file(8 * kMiB);
  for (uint64_t length : {1, 2, 3, 64}) {
    Headers headers;
    headers.current.log = {kMiB, length * kMiB};
    uint64_t most = Journal(file, headers).capacity();
    EXPECT_LE(LogEntryLength(most, 0), length * kMiB / 2);
    EXPECT_GT(LogEntryLength(most + 1, 0), length * kMiB / 2);
  }
}

// Pages 4 to 7 MiB hold the number of the last commit, all of them: at no moment may a power cut
// leave some with an older one, or a number older than what was acknowledged.
TEST(Journal, APowerCutLeavesOneCommitWhole) {
  MemoryStore base;
  ASSERT_TRUE(CreateImage({"", 8 * kMiB, 1, {{"block_size", "1M"}}}, base));
  ASSERT_TRUE(base.Resize(8 * kMiB));
  CrashRecorder recorder;
  auto store = recorder.NewStore(base);
  Headers headers = ReadHeaders(*store).value();
  Journal journal(*store, headers);
  ASSERT_TRUE(journal.CheckLog());
  std::vector<uint64_t> acknowledged{recorder.boundary()};
  for (uint8_t number = 1; number <= 9; ++number) {
    std::vector<LogPage> pages;
    // Large enough that the ring goes round.
    for (uint64_t i = 0; i < 60; ++i) pages.push_back({4 * kMiB + i * 4096, Page(number)});
    ASSERT_TRUE(store->Sync());
    ASSERT_TRUE(journal.Commit(pages, {}, 8 * kMiB));
    acknowledged.push_back(recorder.boundary());
  }
  ASSERT_TRUE(journal.Close(false));
  for (uint64_t cut = 0; cut <= recorder.boundary(); ++cut) {
    for (uint64_t variant = 0; variant < 4; ++variant) {
      auto disk = recorder.Crash(cut, variant);
      std::unique_ptr<ReplayedStore> replayed;
      auto image = ReadImage(*disk, replayed);
      ASSERT_TRUE(image) << cut << ": " << image.error().text();
      Store& file = replayed ? static_cast<Store&>(*replayed) : *disk;
      std::vector<std::byte> got(60 * 4096);
      ASSERT_TRUE(file.Read(4 * kMiB, Bytes(got)));
      ASSERT_EQ(std::ranges::count(got, got[0]), 60 * 4096) << "cut " << cut << "/" << variant;
      size_t number = std::to_integer<size_t>(got[0]);
      if (number + 1 < acknowledged.size()) {
        EXPECT_LT(cut, acknowledged[number + 1]);
      }
      // A log that the headers name holds a whole entry.
      if (!IsNil(image->headers.current.log_id)) {
        EXPECT_GT(image->replayed_entries, 0u);
      }
      // Replayed into the file it reads the same.
      ASSERT_TRUE(FinishReplay(*disk, *image, std::move(replayed)));
      std::vector<std::byte> again(got.size());
      ASSERT_TRUE(disk->Read(4 * kMiB, Bytes(again)));
      ASSERT_TRUE(again == got);
    }
  }
}

}  // namespace
}  // namespace platter::vhdx
