#include "formats/vhdx/vhdx_subjects_testing.h"

#include "formats/vhdx/vhdx_check.h"
#include "formats/vhdx/vhdx_create.h"
#include "formats/vhdx/vhdx_layer.h"
#include "io/testing/wrapper_store.h"

namespace platter::vhdx {

ParentFile ParentOf(uint64_t size, uint32_t sector) {
  ParentFile parent{.path = "/vm/parent.vhdx", .relative = "parent.vhdx", .info = {}};
  parent.info.format = "vhdx";
  parent.info.size = size;
  parent.info.sector = sector;
  parent.info.identity.version = "00112233-4455-6677-8899-aabbccddeeff";
  return parent;
}

Result<> CreateImage(const Configuration& configuration, Store& store) {
  CreateOptions options;
  options.size = configuration.size;
  options.options = configuration.options;
  if (configuration.parent) {
    auto sector = configuration.options.find("logical_sector_size");
    options.parent = Reference();
    options.parent_file =
        ParentOf(configuration.size,
                 sector != configuration.options.end() && sector->second == "4096" ? 4096 : 512);
  }
  return CreateVhdx(store, options);
}

Result<std::unique_ptr<Layer>> OpenImage(Store& store, bool writable) {
  OpenOptions options;
  options.writable = writable;
  return OpenVhdx(std::make_unique<WrapperStore>(store), options);
}

Result<bool> IsSound(Store& store) {
  CheckReport report = TRY(CheckVhdx(store, OpenOptions{}, CheckOptions{}));
  for (const CheckReport::Finding& finding : report.findings) {
    if (finding.kind != CheckReport::Finding::kLeak) {
      return Fail(Code::kCorrupt, "{}", finding.text);
    }
  }
  return report.corruptions == 0 && report.errors == 0;
}

std::vector<Configuration> Configurations() {
  using Options = std::map<std::string, std::string>;
  const Options small{{"block_size", "1M"}};
  return {
      {"dynamic", 2 * kMiB + 1536, 256 * kKiB, small},
      {"dynamic with states 0", 3 * kMiB, 512 * kKiB,
       Options{{"block_size", "1M"}, {"block_state_zero", "off"}}},
      {"dynamic with 4 KiB sectors", 5 * kMiB, 512 * kKiB,
       Options{{"block_size", "2M"}, {"logical_sector_size", "4096"}}},
      {"fixed", 2 * kMiB, 128 * kKiB, Options{{"block_size", "1M"}, {"subformat", "fixed"}}},
      {"differencing", 2 * kMiB + 512, 128 * kKiB, small, true},
      {"differencing in sectors", 1 * kMiB + 512 * kKiB, 512, small, true},
      {"differencing with 4 KiB sectors", 3 * kMiB, 4096,
       Options{{"block_size", "2M"}, {"logical_sector_size", "4096"}}, true},
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

}  // namespace platter::vhdx
