// Entries of the log.
#include <cstring>

#include "base/check.h"
#include "base/endian.h"
#include "formats/vhdx/vhdx_disk.h"
#include "formats/vhdx/vhdx_parse.h"
#include "io/codec/crc32c.h"

namespace platter::vhdx {

uint64_t LogEntry::head_length() const {
  return RoundUp(sizeof(LogEntryDisk) + uint64_t{descriptors} * sizeof(LogDescriptorDisk),
                 kLogSector);
}

Result<std::optional<LogEntry>> ParseLogEntry(ConstBytes sector, const ImageId& log_id,
                                              uint64_t log_length) {
  auto disk = LoadAt<LogEntryDisk>(sector, 0);
  if (!disk || disk->signature != kLogSignature || disk->log_guid != log_id) {
    return std::optional<LogEntry>();
  }
  LogEntry entry;
  entry.sequence = disk->sequence_number;
  entry.length = disk->entry_length;
  entry.tail = disk->tail;
  entry.descriptors = disk->descriptor_count;
  entry.checksum = disk->checksum;
  entry.flushed_size = disk->flushed_file_offset;
  entry.last_size = disk->last_file_offset;
  entry.log_id = disk->log_guid;
  if (entry.sequence == 0) return Fail(Code::kCorrupt, "its sequence number is 0");
  if (entry.length == 0 || entry.length > log_length || !IsAligned(entry.length, kLogSector)) {
    return Fail(Code::kCorrupt, "its length is {:#x}, that of the log {:#x}", entry.length,
                log_length);
  }
  if (entry.tail >= log_length || !IsAligned(entry.tail, kLogSector)) {
    return Fail(Code::kCorrupt, "its tail is at {:#x} of a log of {:#x}", entry.tail, log_length);
  }
  if (entry.head_length() > entry.length) {
    return Fail(Code::kCorrupt, "{} descriptors do not fit in {:#x} bytes", entry.descriptors,
                entry.length);
  }
  return std::optional(entry);
}

Result<LogChange> ParseLogDescriptor(ConstBytes bytes, const LogEntry& entry) {
  auto disk = LoadAt<LogDescriptorDisk>(bytes, 0);
  if (!disk) return Fail(Code::kCorrupt, "it is cut off");
  if (disk->signature != kZeroSignature && disk->signature != kDataSignature) {
    return Fail(Code::kCorrupt, "it has no signature");
  }
  if (disk->sequence_number != entry.sequence) {
    return Fail(Code::kCorrupt, "its sequence number is {}, that of its entry {}",
                uint64_t{disk->sequence_number}, entry.sequence);
  }
  LogChange change;
  change.zero = disk->signature == kZeroSignature;
  change.leading = disk->leading;
  change.trailing = disk->trailing;
  change.file = {disk->file_offset, change.zero ? change.leading : kLogSector};
  if (!IsAligned(change.file.offset, kLogSector) || !IsAligned(change.file.length, kLogSector)) {
    return Fail(Code::kCorrupt, "it changes {:#x} bytes at {:#x}, not aligned to 4 KiB",
                change.file.length, change.file.offset);
  }
  if (!CheckedAdd(change.file.offset, change.file.length)) {
    return Fail(Code::kCorrupt, "it changes {:#x} bytes at {:#x}, past 2^64", change.file.length,
                change.file.offset);
  }
  return change;
}

bool IsDataSector(ConstBytes sector, const LogEntry& entry) {
  auto disk = LoadAt<LogSectorDisk>(sector, 0);
  return disk && disk->signature == kSectorSignature &&
         (uint64_t{disk->sequence_high} << 32 | disk->sequence_low) == entry.sequence;
}

void RestoreSector(ConstBytes sector, const LogChange& change, Bytes into) {
  std::memcpy(into.data(), sector.data(), kLogSector);
  StoreAt(into, 0, le64(change.leading));
  StoreAt(into, kLogSector - kSectorTrail, le32(change.trailing));
}

uint64_t LogEntryLength(uint64_t pages, uint64_t zeros) {
  return RoundUp(sizeof(LogEntryDisk) + (pages + zeros) * sizeof(LogDescriptorDisk), kLogSector) +
         pages * kLogSector;
}

std::vector<std::byte> BuildLogEntry(const LogEntry& entry, const std::vector<LogPage>& pages,
                                     const std::vector<Range>& zeros) {
  std::vector<std::byte> bytes(LogEntryLength(pages.size(), zeros.size()));
  LogEntryDisk head{};
  head.signature = kLogSignature;
  head.entry_length = static_cast<uint32_t>(bytes.size());
  head.tail = entry.tail;
  head.sequence_number = entry.sequence;
  head.descriptor_count = static_cast<uint32_t>(pages.size() + zeros.size());
  head.log_guid = entry.log_id;
  head.flushed_file_offset = entry.flushed_size;
  head.last_file_offset = entry.last_size;
  uint64_t at = sizeof head, sector = bytes.size() - pages.size() * kLogSector;
  for (Range zero : zeros) {
    LogDescriptorDisk descriptor{};
    descriptor.signature = kZeroSignature;
    descriptor.leading = zero.length;
    descriptor.file_offset = zero.offset;
    descriptor.sequence_number = entry.sequence;
    StoreAt(bytes, at, descriptor);
    at += sizeof descriptor;
  }
  for (const LogPage& page : pages) {
    CHECK(page.bytes.size() == kLogSector);
    LogDescriptorDisk descriptor{};
    descriptor.signature = kDataSignature;
    descriptor.leading = *LoadAt<le64>(page.bytes, 0);
    descriptor.trailing = *LoadAt<le32>(page.bytes, kLogSector - kSectorTrail);
    descriptor.file_offset = page.offset;
    descriptor.sequence_number = entry.sequence;
    StoreAt(bytes, at, descriptor);
    at += sizeof descriptor;
    LogSectorDisk data{};
    data.signature = kSectorSignature;
    data.sequence_high = static_cast<uint32_t>(entry.sequence >> 32);
    data.sequence_low = static_cast<uint32_t>(entry.sequence & 0xffffffff);
    std::memcpy(data.data.data(), page.bytes.data() + kSectorLead, data.data.size());
    StoreAt(bytes, sector, data);
    sector += kLogSector;
  }
  StoreAt(bytes, 0, head);
  head.checksum = Crc32c(bytes);
  StoreAt(bytes, 0, head);
  return bytes;
}

}  // namespace platter::vhdx
