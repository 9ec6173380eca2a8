#include "formats/vhdx/vhdx_journal.h"

#include <sys/uio.h>

#include <algorithm>

#include "base/check.h"
#include "formats/vhdx/vhdx_disk.h"

namespace platter::vhdx {

Result<> Journal::CheckLog() const {
  const Range log = headers_.current.log;
  uint64_t size = TRY(file_.Size());
  if (!log.empty() && FitsIn(log.offset, log.length, size)) return {};
  return Fail(Code::kCorrupt,
              "header: the log, {:#x} bytes at {:#x}, is not inside the file ({:#x})", log.length,
              log.offset, size);
}

uint64_t Journal::capacity() const {
  constexpr uint64_t kMost = 4096;  // 16 MiB, which are kept in memory
  const uint64_t sectors = log_length_ / 2 / kLogSector;
  constexpr uint64_t kInFirst = (kLogSector - sizeof(LogEntryDisk)) / sizeof(LogDescriptorDisk);
  constexpr uint64_t kInOthers = kLogSector / sizeof(LogDescriptorDisk);
  // One sector for the header and its descriptors, one for each 128 descriptors more.
  if (sectors <= 1 + kInFirst) return sectors - 1;
  uint64_t rest = sectors - 1 - kInFirst;
  return std::min(kMost, kInFirst + rest - DivideUp(rest, kInOthers + 1));
}

Result<> Journal::Commit(const std::vector<LogPage>& pages, const std::vector<Range>& zeros,
                         uint64_t synced_size) {
  CHECK(LogEntryLength(pages.size(), zeros.size()) <= headers_.current.log.length / 2);
  if (IsNil(id_)) id_ = MakeImageId({}, "log");
  LogEntry entry;
  entry.sequence = sequence_;
  entry.tail = static_cast<uint32_t>(next_);
  entry.log_id = id_;
  entry.flushed_size = RoundDown(synced_size, kAlign);
  entry.last_size = RoundUp(std::max(synced_size, TRY(file_.Size())), kAlign);
  const std::vector<std::byte> bytes = BuildLogEntry(entry, pages, zeros);
  TRY_AS("log", WriteRing(bytes));
  TRY_AS("log", file_.Sync());
  if (headers_.current.log_id != id_) {
    TRY(UpdateHeaders(file_, headers_, [&](Header& header) { header.log_id = id_; }));
  }
  next_ = (next_ + bytes.size()) % headers_.current.log.length;
  ++sequence_;
  return WriteInPlace(pages, zeros);
}

Result<> Journal::WriteRing(ConstBytes bytes) {
  const Range log = headers_.current.log;
  uint64_t here = std::min<uint64_t>(bytes.size(), log.length - next_);
  TRY(file_.Write(log.offset + next_, bytes.first(here)));
  if (here == bytes.size()) return {};
  return file_.Write(log.offset, bytes.subspan(here));
}

Result<> Journal::WriteInPlace(const std::vector<LogPage>& pages, const std::vector<Range>& zeros) {
  for (Range zero : zeros) TRY(file_.Zero(zero, /*may_unmap=*/true));
  std::vector<iovec> run;
  for (size_t first = 0; first < pages.size();) {
    run.clear();
    size_t last = first;
    do {
      run.push_back({const_cast<std::byte*>(pages[last].bytes.data()), kLogSector});
      ++last;
    } while (last < pages.size() && pages[last].offset == pages[last - 1].offset + kLogSector);
    TRY(file_.Write(pages[first].offset, std::span<const iovec>(run)));
    first = last;
  }
  return {};
}

Result<> Journal::Close(bool erase) {
  if (IsNil(headers_.current.log_id)) return {};
  TRY(file_.Sync());
  TRY(UpdateHeaders(file_, headers_, [](Header& header) { header.log_id = {}; }));
  id_ = {};
  next_ = 0;
  sequence_ = 1;
  return erase ? file_.Zero(headers_.current.log, /*may_unmap=*/true) : Result<>();
}

}  // namespace platter::vhdx
