#include "formats/vhdx/vhdx_log.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/endian.h"
#include "formats/vhdx/vhdx_disk.h"
#include "io/codec/crc32c.h"

namespace platter::vhdx {
namespace {

constexpr uint64_t kMostLog = kGiB;
// No file of a disk of 64 TiB is longer.
constexpr uint64_t kMostFile = uint64_t{1} << 47;
constexpr uint64_t kPiece = 256 * kKiB;  // read at once

// Reads entries from the ring, and finds the sequence.
class LogScan {
 public:
  LogScan(Store& file, const Header& header)
      : file_(file), header_(header), log_(header.log), budget_(2 * log_.length + 64 * kMiB) {}

  Result<std::optional<LogSequence>> Run() {
    TRY(FindEntries());
    std::optional<LogSequence> sequence = Active();
    if (!sequence) {
      if (malformed_) return std::unexpected(std::move(*malformed_));
      if (!entries_.empty()) {
        return Fail(Code::kCorrupt,
                    "log: the entry at {:#x} names a tail that is not there ({:#x})",
                    entries_.begin()->first, entries_.begin()->second.tail);
      }
      return std::optional<LogSequence>();
    }
    TRY(CheckSizes(sequence->head()));
    return sequence;
  }

 private:
  // `into` from the ring's byte `at`, going on at its start.
  Result<> ReadRing(uint64_t at, Bytes into) {
    while (!into.empty()) {
      uint64_t here = std::min<uint64_t>(into.size(), log_.length - at);
      TRY_AS("log", file_.Read(log_.offset + at, into.first(here)));
      into = into.subspan(here);
      at = 0;
    }
    return {};
  }

  Result<> FindEntries() {
    std::vector<std::byte> piece(kPiece);
    for (uint64_t at = 0; at < log_.length;) {
      Store::Run run = TRY_AS("log", file_.FindRun(log_.offset + at));
      uint64_t next = RoundDown(at + std::min(run.length, log_.length - at), kLogSector);
      if (!run.data && next > at) {
        at = next;
        continue;
      }
      Bytes part = Bytes(piece).first(std::min(kPiece, log_.length - at));
      TRY_AS("log", file_.Read(log_.offset + at, part));
      for (uint64_t i = 0; i < part.size(); i += kLogSector) {
        TRY(Look(at + i, part.subspan(i, kLogSector)));
      }
      at += part.size();
    }
    return {};
  }

  Result<> Look(uint64_t at, ConstBytes sector) {
    auto entry = ParseLogEntry(sector, header_.log_id, log_.length);
    if (!entry.has_value()) {
      NoteMalformed(at, std::move(entry.error()));
      return {};
    }
    if (!*entry) return {};
    if ((*entry)->length > budget_) {
      return Fail(Code::kCorrupt, "log: its entries overlap (the one at {:#x} has {:#x} bytes)", at,
                  (*entry)->length);
    }
    budget_ -= (*entry)->length;
    return Verify(at, **entry);
  }

  // Takes the entry if its checksum and all that is in it are right.
  Result<> Verify(uint64_t at, const LogEntry& entry) {
    std::vector<std::byte> piece(std::min<uint64_t>(kPiece, entry.length));
    uint32_t checksum = 0, data_sectors = 0, count = 0;
    Result<> good;
    for (uint64_t done = 0; done < entry.length; done += piece.size()) {
      piece.resize(std::min<uint64_t>(kPiece, entry.length - done));
      TRY(ReadRing((at + done) % log_.length, piece));
      if (done == 0) StoreAt(Bytes(piece), offsetof(LogEntryDisk, checksum), le32(0));
      checksum = Crc32c(piece, checksum);
      for (uint64_t i = 0; i < piece.size(); i += kLogSector) {
        Result<> sector = CheckSector(entry, done + i, ConstBytes(piece).subspan(i, kLogSector),
                                      count, data_sectors);
        if (good.has_value()) good = std::move(sector);
      }
    }
    if (checksum != entry.checksum) return {};  // torn
    if (good.has_value() && entry.length != entry.head_length() + data_sectors * kLogSector) {
      good = Fail(Code::kCorrupt, "its {:#x} bytes are not those of {} data sectors", entry.length,
                  data_sectors);
    }
    if (good.has_value()) {
      entries_.emplace(at, entry);
    } else {
      NoteMalformed(at, std::move(good.error()));
    }
    return {};
  }

  // Sector `at` of an entry: `count` descriptors were seen so far, `data_sectors` of them data.
  static Result<> CheckSector(const LogEntry& entry, uint64_t at, ConstBytes sector,
                              uint32_t& count, uint32_t& data_sectors) {
    if (at >= entry.head_length()) {
      if (IsDataSector(sector, entry)) return {};
      return Fail(Code::kCorrupt, "its data sector at {:#x} is not of this entry", at);
    }
    for (uint64_t i = at == 0 ? sizeof(LogEntryDisk) : 0;
         i < kLogSector && count < entry.descriptors; i += sizeof(LogDescriptorDisk), ++count) {
      LogChange change =
          TRY_AS(fmt::format("descriptor {}", count), ParseLogDescriptor(sector.subspan(i), entry));
      if (!change.zero) ++data_sectors;
    }
    return {};
  }

  void NoteMalformed(uint64_t at, Error error) {
    if (!malformed_)
      malformed_ = std::move(error).WithPrefix(fmt::format("log entry at {:#x}", at));
  }

  // Of all sequences the one with the newest head. Valid entries do not overlap, since none begins
  // in a sector that belongs to another: so each has one predecessor at most, and the chains that
  // they form are found in one pass each.
  std::optional<LogSequence> Active() const {
    struct Link {
      uint64_t chain, index;
    };
    std::map<uint64_t, Link> links;
    std::map<uint64_t, bool> follows;
    auto next = [&](uint64_t at, const LogEntry& entry) {
      auto found = entries_.find((at + entry.length) % log_.length);
      bool yes = found != entries_.end() && found->second.sequence == entry.sequence + 1;
      return yes ? found : entries_.end();
    };
    for (const auto& [at, entry] : entries_) {
      if (auto after = next(at, entry); after != entries_.end()) follows[after->first] = true;
    }
    for (const auto& [at, entry] : entries_) {
      if (follows.contains(at)) continue;
      uint64_t index = 0;
      for (auto it = entries_.find(at); it != entries_.end(); it = next(it->first, it->second)) {
        links[it->first] = {at, index++};
      }
    }
    auto head = entries_.end();
    for (auto it = entries_.begin(); it != entries_.end(); ++it) {
      if (head != entries_.end() && head->second.sequence >= it->second.sequence) continue;
      auto tail = links.find(it->second.tail);
      auto self = links.find(it->first);
      if (tail == links.end() || self == links.end()) continue;
      if (tail->second.chain != self->second.chain) continue;
      if (tail->second.index > self->second.index) continue;
      head = it;
    }
    if (head == entries_.end()) return std::nullopt;
    LogSequence sequence;
    for (auto it = entries_.find(head->second.tail);; it = next(it->first, it->second)) {
      sequence.entries.push_back({it->first, it->second});
      if (it == head) break;
    }
    return sequence;
  }

  Result<> CheckSizes(const LogEntry& head) {
    uint64_t size = TRY(file_.Size());
    if (head.flushed_size > size) {
      return Fail(Code::kCorrupt, "log: the file had at least {:#x} bytes, it was cut to {:#x}",
                  head.flushed_size, size);
    }
    if (head.last_size > kMostFile) {
      return Fail(Code::kCorrupt, "log: the file would have to grow to {:#x} bytes",
                  head.last_size);
    }
    return {};
  }

  Store& file_;
  const Header& header_;
  const Range log_;
  uint64_t budget_;  // bytes of entries that are still verified
  std::map<uint64_t, LogEntry> entries_;
  std::optional<Error> malformed_;  // the first entry that is whole and wrong
};

}  // namespace

Result<std::optional<LogSequence>> FindSequence(Store& file, const Header& header) {
  if (IsNil(header.log_id)) return std::optional<LogSequence>();
  if (header.log.length > kMostLog) {
    return Fail(Code::kUnsupported, "log: {:#x} bytes to be replayed, {:#x} is the most",
                header.log.length, kMostLog);
  }
  return LogScan(file, header).Run();
}

Result<LogChanges> LogChanges::Load(Store& file, const Header& header,
                                    const LogSequence& sequence) {
  LogChanges changes;
  changes.log_ = header.log;
  changes.size_ = std::max(TRY(file.Size()), sequence.head().last_size);
  for (const LogSequence::Placed& placed : sequence.entries) {
    TRY_AS(fmt::format("log entry at {:#x}", placed.at), changes.AddEntry(file, placed));
  }
  return changes;
}

Result<> LogChanges::AddEntry(Store& file, const LogSequence::Placed& placed) {
  const LogEntry& entry = placed.entry;
  auto in_file = [&](uint64_t at) { return log_.offset + (placed.at + at) % log_.length; };
  std::array<std::byte, kLogSector> sector;
  uint64_t data = entry.head_length();
  for (uint32_t i = 0; i < entry.descriptors; ++i) {
    uint64_t at = sizeof(LogEntryDisk) + i * sizeof(LogDescriptorDisk);
    if (i == 0 || at % kLogSector == 0) {
      TRY(file.Read(in_file(RoundDown(at, kLogSector)), Bytes(sector)));
    }
    Piece piece;
    piece.change = TRY_AS(fmt::format("descriptor {}", i),
                          ParseLogDescriptor(ConstBytes(sector).subspan(at % kLogSector), entry));
    TRY_AS(fmt::format("descriptor {}", i), CheckTarget(piece.change.file));
    piece.end = piece.change.file.end();
    piece.sector = piece.change.zero ? 0 : in_file(data);
    if (!piece.change.zero) data += kLogSector;
    if (pieces_.size() >= kMostChanges) {
      return Fail(Code::kUnsupported, "the log changes more than {} places", kMostChanges);
    }
    if (!piece.change.file.empty()) Insert(piece.change.file.offset, piece);
  }
  return {};
}

// File identifier and headers are never logged, and the log does not change itself.
Result<> LogChanges::CheckTarget(Range target) const {
  if (target.offset < kRegionTableOffsets[0] || target.Overlaps(log_)) {
    return Fail(Code::kCorrupt, "it changes {:#x} bytes at {:#x}, which is no place for it",
                target.length, target.offset);
  }
  if (target.end() > RoundUp(size_, kAlign)) {
    return Fail(Code::kCorrupt, "it changes {:#x} bytes at {:#x}, past the end of the file ({:#x})",
                target.length, target.offset, size_);
  }
  return {};
}

// Cuts what lies under the new piece.
void LogChanges::Insert(uint64_t begin, const Piece& piece) {
  auto at = pieces_.upper_bound(begin);
  if (at != pieces_.begin() && std::prev(at)->second.end > begin) --at;
  while (at != pieces_.end() && at->first < piece.end) {
    Piece old = at->second;
    uint64_t old_begin = at->first;
    at = pieces_.erase(at);
    Piece left = old;
    left.end = begin;
    if (old_begin < begin) pieces_.emplace(old_begin, left);
    if (old.end > piece.end) at = pieces_.emplace(piece.end, old).first;
  }
  pieces_.emplace(begin, piece);
}

// Pages are never cut: their borders are those of everything else.
Result<> LogChanges::ReadPage(Store& file, const Piece& piece, Bytes into) const {
  std::array<std::byte, kLogSector> sector;
  TRY_AS("log", file.Read(piece.sector, Bytes(sector)));
  RestoreSector(sector, piece.change, into);
  return {};
}

Result<> LogChanges::Apply(Store& file) const {
  if (TRY(file.Size()) < size_) TRY(file.Resize(size_));
  std::array<std::byte, kLogSector> page;
  for (const auto& [begin, piece] : pieces_) {
    if (piece.change.zero) {
      TRY(file.Zero(Range::FromTo(begin, piece.end), /*may_unmap=*/true));
      continue;
    }
    TRY(ReadPage(file, piece, Bytes(page)));
    TRY(file.Write(begin, ConstBytes(page)));
  }
  return file.Sync();
}

Range LogChanges::Next(uint64_t at) const {
  auto found = pieces_.upper_bound(at);
  if (found != pieces_.begin() && std::prev(found)->second.end > at) --found;
  return found == pieces_.end() ? Range{} : Range::FromTo(found->first, found->second.end);
}

Result<> LogChanges::Patch(Store& file, uint64_t at, Bytes into) const {
  const Range want{at, into.size()};
  std::array<std::byte, kLogSector> page;
  auto found = pieces_.upper_bound(at);
  if (found != pieces_.begin() && std::prev(found)->second.end > at) --found;
  for (; found != pieces_.end() && found->first < want.end(); ++found) {
    Range part = Range::FromTo(found->first, found->second.end).Intersect(want);
    Bytes to = into.subspan(part.offset - at, part.length);
    if (found->second.change.zero) {
      std::memset(to.data(), 0, to.size());
      continue;
    }
    TRY(ReadPage(file, found->second, Bytes(page)));
    std::memcpy(to.data(), page.data() + (part.offset - found->first), to.size());
  }
  return {};
}

}  // namespace platter::vhdx
