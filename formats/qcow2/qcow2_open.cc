// Opening: from a store to the parts of a Qcow2Layer. Nothing is written here but the repair of an
// image with the dirty bit.
#include <algorithm>
#include <iterator>
#include <span>
#include <utility>

#include "formats/qcow2/qcow2_check.h"
#include "formats/qcow2/qcow2_crypto.h"
#include "formats/qcow2/qcow2_header_io.h"
#include "formats/qcow2/qcow2_info.h"
#include "formats/qcow2/qcow2_layer.h"

namespace platter::qcow2 {
namespace {

constexpr size_t kMostProblems = 10;  // that are told of one image

// The snapshot table does not say how long it is: more of the file is read until it is whole.
Result<std::vector<Snapshot>> ReadSnapshots(Store& file, const Header& header,
                                            std::vector<Error>& bad) {
  if (header.snapshot_count == 0) return std::vector<Snapshot>();
  uint64_t end = TRY(file.Size());
  if (header.snapshots_offset >= end) {
    return Fail(Code::kCorrupt, "the snapshot table at {:#x} lies past the end of the file ({:#x})",
                header.snapshots_offset, end);
  }
  const uint64_t most = std::min(end - header.snapshots_offset, kMaxSnapshotTableBytes);
  for (uint64_t length = std::min(most, 64 * kKiB + header.snapshot_count * 256);;
       length = std::min(most, length * 4)) {
    std::vector<std::byte> table(length);
    TRY_AS("snapshot table", file.Read(header.snapshots_offset, Bytes(table)));
    bad.clear();
    auto snapshots = ParseSnapshots(header, table, nullptr, &bad);
    if (snapshots.has_value() || length == most) return snapshots;
  }
}

Result<std::vector<Bitmap>> ReadBitmaps(Store& file, const Header& header,
                                        std::vector<Error>& bad) {
  if (!header.bitmaps) return std::vector<Bitmap>();
  uint64_t end = TRY(file.Size());
  Range place{header.bitmaps->directory_offset, header.bitmaps->directory_size};
  if (!FitsIn(place.offset, place.length, end)) {
    return Fail(Code::kCorrupt,
                "the bitmap directory at {:#x} reaches past the end of the file ({:#x})",
                place.offset, end);
  }
  std::vector<std::byte> directory(place.length);
  TRY_AS("bitmap directory", file.Read(place.offset, Bytes(directory)));
  return ParseBitmaps(header, directory, &bad);
}

// Snapshots and bitmaps. The disk can be read without them, so for a reader what is wrong of them
// is left out and told. A writer has to know everything that is in use: an error.
Result<> ReadBeside(Qcow2Layer::Parts& parts, bool writable, std::vector<std::string>& problems) {
  std::vector<Error> bad, bad_bitmaps;
  auto take = [&](auto read, auto& into) {
    if (read) {
      into = std::move(*read);
    } else {
      bad.push_back(std::move(read.error()));
    }
  };
  take(ReadSnapshots(*parts.file, parts.header, bad), parts.snapshots);
  take(ReadBitmaps(*parts.file, parts.header, bad_bitmaps), parts.bitmaps);
  std::ranges::move(bad_bitmaps, std::back_inserter(bad));
  if (writable && !bad.empty()) return std::unexpected(std::move(bad.front()));
  for (const Error& error : std::span(bad).first(std::min(bad.size(), kMostProblems))) {
    problems.push_back(error.text());
  }
  if (bad.size() > kMostProblems) {
    problems.push_back(fmt::format("{} more of this kind", bad.size() - kMostProblems));
  }
  return {};
}

Result<const Snapshot*> FindSnapshot(const std::vector<Snapshot>& snapshots,
                                     const std::string& wanted) {
  for (const Snapshot& snapshot : snapshots) {
    if (snapshot.info.id == wanted) return &snapshot;
  }
  for (const Snapshot& snapshot : snapshots) {
    if (snapshot.info.name == wanted) return &snapshot;
  }
  return Fail(Code::kOutOfRange, "there is no snapshot '{}'", Printable(wanted));
}

// A writable image that may be written as it is.
Result<> CheckMayWrite(Store& file, const Header& header, const OpenOptions& options) {
  if (!file.writable()) return Fail(Code::kReadOnly, "'{}' is opened for reading", file.name());
  if (!options.snapshot.empty()) {
    return Fail(Code::kReadOnly, "snapshot '{}': snapshots can be read only",
                Printable(options.snapshot));
  }
  if (header.incompatible & kCorrupt) {
    return Fail(Code::kCorrupt,
                "the image is marked as corrupt: it can be read, or repaired by check");
  }
  return {};
}

// Data file, cipher and L1 table: what reading guest data needs.
Result<> OpenData(Qcow2Layer::Parts& parts, const OpenOptions& options) {
  const Header& header = parts.header;
  if (header.has_data_file()) {
    std::string name = header.data_file_name.value_or("");
    if (options.opener == nullptr) {
      return Fail(Code::kRefused, "needs its external data file '{}'", Printable(name));
    }
    parts.data_file = TRY(options.opener->OpenReference(
        Reference{Reference::kData, std::move(name), "raw"}, options.writable));
  }
  parts.cipher = TRY(OpenCipher(header, *parts.file, options.secret));
  if (options.snapshot.empty()) {
    // A writer keeps the entries past the disk's end; a reader has no use for them.
    uint64_t entries = options.writable ? header.l1_size : header.l1_entries_for(header.size);
    return parts.l1.Load(*parts.file, "L1 table", header.l1_offset, entries);
  }
  const Snapshot* snapshot = TRY(FindSnapshot(parts.snapshots, options.snapshot));
  parts.info.size = snapshot->info.disk_size;
  return parts.l1.Load(*parts.file,
                       fmt::format("L1 table of snapshot {}", Printable(snapshot->info.id)),
                       snapshot->l1_offset, header.l1_entries_for(snapshot->info.disk_size));
}

Result<std::unique_ptr<Layer>> Open(std::unique_ptr<Store> file, const OpenOptions& options) {
  Qcow2Layer::Parts parts;
  parts.header = TRY(ReadHeader(*file));
  if (options.writable) {
    TRY(CheckMayWrite(*file, parts.header, options));
    if ((parts.header.incompatible & kDirty) && !options.info_only) {
      TRY_AS("repairing refcounts", RepairDirty(*file));
      parts.header = TRY(ReadHeader(*file));
    }
  }
  parts.file = std::move(file);
  std::vector<std::string> problems;
  TRY(ReadBeside(parts, options.writable, problems));
  parts.info = TRY(MakeInfo(parts.header, parts.snapshots, parts.bitmaps));
  parts.info.problems = std::move(problems);
  parts.info.writable = options.writable;
  parts.info_only = options.info_only;
  TRY(AddLuksFacts(parts.header, *parts.file, parts.info));
  if (!options.info_only) TRY(OpenData(parts, options));
  auto layer = std::make_unique<Qcow2Layer>(std::move(parts));
  if (options.writable && !options.info_only) TRY(layer->PrepareToWrite());
  return layer;
}

}  // namespace

Result<std::unique_ptr<Layer>> OpenQcow2(std::unique_ptr<Store> store, const OpenOptions& options) {
  std::string name = fmt::format("qcow2 '{}'", store->name());
  for (const auto& [option, value] : options.options) {
    return Fail(Code::kUnsupported, "{}: there is no option '{}' when opening", name,
                Printable(option));
  }
  return Open(std::move(store), options).WithPrefix(name);
}

}  // namespace platter::qcow2
