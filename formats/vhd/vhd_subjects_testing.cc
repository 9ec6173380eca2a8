#include "formats/vhd/vhd_subjects_testing.h"

#include "formats/vhd/vhd_check.h"
#include "formats/vhd/vhd_create.h"
#include "formats/vhd/vhd_image.h"
#include "formats/vhd/vhd_layer.h"
#include "io/testing/wrapper_store.h"

namespace platter::vhd {

namespace {

// Gives the first blocks a place each, their bitmaps set for every third sector only. What the bits
// leave out holds rubbish.
Result<> AddPartialBlocks(Store& store, uint64_t blocks) {
  OpenedImage opened = TRY(ReadImage(store, OpenOptions{}));
  const Header& header = opened.image.header;
  const DiskFooter footer = EncodeFooter(opened.image.footer);
  uint64_t at = *opened.image.tail;
  for (uint64_t block = 0; block < blocks; ++block) {
    std::vector<std::byte> unit(header.unit(), std::byte{0xee});
    for (uint64_t i = 0; i < header.bitmap_size(); ++i) unit[i] = std::byte{0};
    for (uint64_t bit = 0; bit < header.block_size / kSector; bit += 3) {
      SetBits(unit, bit, bit + 1, true);
      std::fill_n(unit.begin() + static_cast<ptrdiff_t>(header.bitmap_size() + bit * kSector),
                  kSector, std::byte{0});
    }
    TRY(store.Write(at, ConstBytes(unit)));
    const be32 entry(static_cast<uint32_t>(at / kSector));
    TRY(store.Write(header.table_offset + block * 4, AsBytes(entry)));
    at += unit.size();
  }
  TRY(store.Write(at, AsBytes(footer)));
  return store.Sync();
}

}  // namespace

ParentFile ParentOf(uint64_t size) {
  ParentFile parent{.path = "/vm/parent.vhd", .relative = "parent.vhd", .modified = 1700000000};
  parent.info.format = "vpc";
  parent.info.size = size;
  parent.info.identity.id = "00112233-4455-6677-8899-aabbccddeeff";
  return parent;
}

Result<> CreateImage(const Configuration& configuration, Store& store) {
  CreateOptions options;
  options.size = configuration.size;
  options.options = configuration.options;
  if (configuration.parent) {
    options.parent = Reference{.name = "parent.vhd", .format = "vpc"};
    options.parent_file = ParentOf(configuration.size);
  } else {
    options.options["force_size"] = "on";
  }
  TRY(CreateVhd(store, options));
  return configuration.partial_blocks > 0 ? AddPartialBlocks(store, configuration.partial_blocks)
                                          : Result<>();
}

Result<std::unique_ptr<Layer>> OpenImage(Store& store, bool writable) {
  OpenOptions options;
  options.writable = writable;
  return OpenVhd(std::make_unique<WrapperStore>(store), options);
}

Result<bool> IsSound(Store& store) {
  CheckReport report = TRY(CheckVhd(store, OpenOptions{}, CheckOptions{}));
  for (const CheckReport::Finding& finding : report.findings) {
    if (finding.kind != CheckReport::Finding::kLeak) {
      return Fail(Code::kCorrupt, "{}", finding.text);
    }
  }
  return report.corruptions == 0 && report.errors == 0;
}

std::vector<Configuration> Configurations() {
  using Options = std::map<std::string, std::string>;
  const Options small{{"block_size", "4K"}}, larger{{"block_size", "16K"}};
  return {
      {"dynamic, 4 KiB blocks", 60 * 4096 + 1536, 4096, small},
      {"dynamic, 16 KiB blocks", 25 * 16384, 16384, larger},
      {"dynamic, partly set bitmaps", 25 * 16384, 16384, larger, false, 12},
      {"differencing, 4 KiB blocks", 60 * 4096, 4096, small, true},
      {"differencing, sectors", 20 * 16384 + 512, 512, larger, true},
      {"differencing, partly set bitmaps", 25 * 16384, 512, larger, true, 12},
      {"fixed", 60 * 4096 + 512, 4096, Options{{"subformat", "fixed"}}},
  };
}

model::Subject SubjectOf(const Configuration& configuration) {
  model::Subject subject;
  subject.name = configuration.name;
  subject.size = configuration.size;
  subject.unit = configuration.unit;
  subject.create = [=](Store& store) { return CreateImage(configuration, store); };
  subject.open = [](Store& store) { return OpenImage(store); };
  subject.check = IsSound;
  return subject;
}

}  // namespace platter::vhd
