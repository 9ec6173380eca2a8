// Creation: further extents first, each with a Sync, then the file that names them. Its first
// sector is written last: what an interrupted creation leaves is not an image.
#include "formats/vmdk/vmdk_create.h"

#include <algorithm>

#include "base/endian.h"
#include "formats/vmdk/vmdk_plan.h"
#include "formats/vmdk/vmdk_stream.h"

namespace platter::vmdk {
namespace {

constexpr uint64_t kPiece = kMiB;  // bytes written at once

// Makes `store` empty and `length` bytes long; it reads as zeros.
Result<> Empty(Store& store, uint64_t length) {
  if (!store.caps().block_device) {
    TRY(store.Resize(0));
    return store.Resize(length);
  }
  uint64_t size = TRY(store.Size());
  if (size >= length) return {};
  return Fail(Code::kNoSpace, "'{}' has {} bytes; {} are needed", store.name(), size, length);
}

// The directory at `place`, whose tables follow it one after the other.
Result<> WriteDirectory(Store& store, const SparseGeometry& g, uint64_t place) {
  const uint64_t length = RoundUp(g.directory_entries * sizeof(le32), kSector);
  std::vector<std::byte> piece;
  for (uint64_t at = 0; at < length; at += kPiece) {
    piece.assign(std::min(kPiece, length - at), std::byte{0});
    for (uint64_t i = 0; i < piece.size() / sizeof(le32); ++i) {
      uint64_t index = at / sizeof(le32) + i;
      if (index >= g.directory_entries) break;
      uint64_t table = place + length + index * g.table_bytes();
      StoreAt(Bytes(piece), i * sizeof(le32), le32(static_cast<uint32_t>(table / kSector)));
    }
    TRY(store.Write(place + at, ConstBytes(piece)));
  }
  return {};
}

Result<> CreateSparse(Store& store, const ImagePlan& plan, uint64_t capacity,
                      const std::string& text) {
  if (store.caps().block_device) {
    return Fail(Code::kUnsupported, "'{}' is a device; sparse extents have to be files",
                store.name());
  }
  SparseGeometry g = LayOutSparse(plan, capacity, text.size());
  TRY(Empty(store, g.overhead));
  if (!text.empty()) TRY(store.Write(g.descriptor.offset, AsBytes(std::string_view(text))));
  if (g.at_end) {
    TRY(StreamWriter(store, g).Finish());
  } else {
    TRY(WriteDirectory(store, g, *g.redundant));
    TRY(WriteDirectory(store, g, g.directory));
    TRY(store.Sync());
  }
  TRY(store.Write(0, AsBytes(BuildHeader(g))));
  return store.Sync();
}

Result<> CreateFlat(Store& store, const ImagePlan& plan, uint64_t length) {
  TRY(Empty(store, length));
  if (plan.allocate && length > 0) TRY(store.Allocate({0, length}));
  return store.Sync();
}

Result<> CreateText(Store& store, const std::string& text) {
  TRY(Empty(store, 0));
  TRY(store.Write(0, AsBytes(std::string_view(text))));
  return store.Sync();
}

}  // namespace

Result<> CreateVmdk(Store& store, const CreateOptions& options) {
  ImagePlan plan = TRY(PlanImage(options));
  const std::string text = BuildDescriptor(plan.descriptor);
  if (plan.embedded()) return CreateSparse(store, plan, options.size, text);
  for (const ExtentLine& line : plan.descriptor.extents) {
    if (!options.files) {
      return Fail(Code::kRefused, "extent '{}': no further file can be made here",
                  Printable(line.name));
    }
    auto make = [&]() -> Result<> {
      Store* file = TRY(options.files->MakeFile(line.name));
      const uint64_t length = line.sectors * kSector;
      return plan.flat() ? CreateFlat(*file, plan, length) : CreateSparse(*file, plan, length, "");
    };
    TRY_AS(fmt::format("extent '{}'", Printable(line.name)), make());
  }
  return CreateText(store, text);
}

Result<MeasureResult> MeasureVmdk(const CreateOptions& options, uint64_t /*allocated_bytes*/,
                                  std::span<const Range> data) {
  ImagePlan plan = TRY(PlanImage(options));
  const uint64_t text = BuildDescriptor(plan.descriptor).size();
  MeasureResult result;
  uint64_t around = plan.embedded() ? 0 : RoundUp(text, kSector);
  if (plan.flat()) {
    result.required = result.fully_allocated = around + RoundUp(options.size, kSector);
    return result;
  }
  uint64_t grains = 0, all = 0, counted = 0;
  for (Range range : data) {
    Range whole = range.Outward(kNewGrain);
    grains += (whole.end() - std::min(whole.end(), std::max(whole.offset, counted))) / kNewGrain;
    counted = std::max(counted, whole.end());
  }
  const bool stream = plan.subformat == Subformat::kStream;
  for (const ExtentLine& line : plan.descriptor.extents) {
    SparseGeometry g = LayOutSparse(plan, line.sectors * kSector, plan.embedded() ? text : 0);
    around += g.overhead;
    if (stream) {
      // Markers, footer, end; and the tables, each with its marker, which only a full stream has.
      around += RoundUp(g.directory_entries * sizeof(le32), kSector) + 4 * kSector +
                std::min(g.directory_entries, grains) * (g.table_bytes() + kSector);
    }
    all += DivideUp(line.sectors * kSector, kNewGrain);
  }
  // A grain of a stream that does not compress at all, with its marker.
  const uint64_t grain = stream ? kNewGrain + kSector : kNewGrain;
  result.required = around + grains * grain;
  result.fully_allocated = around + all * grain;
  return result;
}

}  // namespace platter::vmdk
