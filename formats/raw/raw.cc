#include "formats/raw/raw.h"

#include <utility>

#include "base/bytes.h"
#include "formats/options.h"
#include "formats/preallocate.h"
#include "formats/raw/raw_layer.h"
#include "io/block_store.h"
#include "io/window_store.h"

namespace platter {

namespace {

constexpr OptionHelp kOpenOptions[] = {
    {"offset", "Bytes of the file before the disk's first one (default 0)"},
    {"size", "Bytes of the disk (default: up to the end of the file)"},
    {"sector", "Bytes of a logical sector: 512 or 4096 (default 512, or the device's)"},
};

constexpr OptionHelp kCreateOptions[] = {
    {"preallocation", "off: sparse; falloc: space is reserved; full: zeros are written"},
};

int ProbeRaw(ConstBytes, ConstBytes, uint64_t) { return 0; }

// The bytes of a store of `size` bytes that options "offset" and "size" choose.
Result<Range> ChooseWindow(const OptionMap& options, uint64_t size) {
  uint64_t offset = TRY(SizeOption(options, "offset")).value_or(0);
  if (offset > size) {
    return Fail(Code::kOutOfRange, "offset {} is past the end of the file ({} bytes)", offset,
                size);
  }
  uint64_t length = TRY(SizeOption(options, "size")).value_or(size - offset);
  if (!FitsIn(offset, length, size)) {
    return Fail(Code::kOutOfRange, "{} bytes at offset {} end past the end of the file ({} bytes)",
                length, offset, size);
  }
  return Range{offset, length};
}

Result<std::unique_ptr<Layer>> OpenRaw(std::unique_ptr<Store> store, const OpenOptions& options) {
  TRY(CheckOptionNames("raw", options.options, kOpenOptions));
  if (!options.snapshot.empty()) return Fail(Code::kUnsupported, "raw images have no snapshots");

  RawLayer::Parts parts;
  parts.writable = options.writable;
  parts.guarded = options.guessed;
  static constexpr uint32_t kSectors[] = {512, 4096};
  auto sector = TRY(ChoiceOption(options.options, "sector", {"512", "4096"}));
  auto* device = dynamic_cast<const BlockStore*>(store.get());
  parts.sector = sector ? kSectors[*sector] : device ? device->sector() : 512;

  uint64_t size = TRY(store->Size());
  Range window = TRY(ChooseWindow(options.options, size));
  parts.resizable = window == Range{0, size};
  if (!parts.resizable) store = TRY(WindowStore::Open(std::move(store), window));
  parts.store = std::move(store);
  return RawLayer::Open(std::move(parts));
}

// On a device the bytes that are there stay; a file starts out all hole.
Result<> CreateRaw(Store& store, const CreateOptions& options) {
  TRY(CheckOptionNames("raw", options.options, kCreateOptions));
  if (options.parent) {
    return Fail(Code::kUnsupported, "raw images have no place to name a parent ('{}')",
                Printable(options.parent->name));
  }
  if (options.size > INT64_MAX) {
    return Fail(Code::kOutOfRange, "a disk of {} bytes is over 8 EiB", options.size);
  }
  auto preallocation =
      TRY(PreallocationOption(options.options, {Preallocation::kFalloc, Preallocation::kFull}));
  if (store.caps().block_device) {
    uint64_t size = TRY(store.Size());
    if (size < options.size) {
      return Fail(Code::kNoSpace, "'{}' has {} bytes, the disk {}", store.name(), size,
                  options.size);
    }
    return {};
  }
  TRY(store.Resize(0));
  TRY(store.Resize(options.size));
  TRY(PreallocateBytes(store, {0, options.size}, preallocation));
  return store.Sync();
}

Result<MeasureResult> MeasureRaw(const CreateOptions& options, uint64_t, std::span<const Range>) {
  TRY(CheckOptionNames("raw", options.options, kCreateOptions));
  return MeasureResult{.required = options.size, .fully_allocated = options.size};
}

}  // namespace

constinit const Format kRawFormat = {
    .name = "raw",
    .create_options = kCreateOptions,
    .probe = ProbeRaw,
    .open = OpenRaw,
    .create = CreateRaw,
    .check = nullptr,
    .measure = MeasureRaw,
};

}  // namespace platter
