#include "formats/vdi/vdi_testing.h"

#include <algorithm>
#include <utility>

#include "base/bytes.h"
#include "base/endian.h"
#include "formats/vdi/vdi_check.h"
#include "formats/vdi/vdi_create.h"
#include "formats/vdi/vdi_layer.h"
#include "io/engine/engine.h"
#include "io/testing/wrapper_store.h"
#include "tests/model/random.h"

namespace platter::vdi {

std::vector<std::byte> HandMade::Bytes() const {
  const bool old = major == 0;
  const uint64_t map_at = old ? 420 : map_offset;
  const uint64_t data_at = old ? 420 + map.size() * 4 : data_offset;
  std::vector<std::byte> bytes(data_at + data.size());
  auto put32 = [&](uint64_t at, uint32_t value) { StoreAt(bytes, at, le32(value)); };
  auto put_id = [&](uint64_t at, uint8_t value) {
    std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(at), 16, std::byte{value});
  };
  const std::string_view creator = "<<< innotek VirtualBox Disk Image >>>\n";
  std::ranges::copy(AsBytes(creator), bytes.begin());
  put32(64, 0xbeda107f);
  put32(68, uint32_t{major} << 16 | minor);
  // From here on version 0 has neither a header size nor places.
  const uint64_t fields = old ? 72 : 76;
  if (!old) put32(72, header_size);
  put32(fields, type);
  if (!old) {
    put32(340, map_offset);
    put32(344, data_offset);
    put32(380, block_extra);
  }
  put32(old ? 348 : 360, sector_size);
  StoreAt(bytes, old ? 352 : 368, le64(size));
  put32(old ? 360 : 376, block_size);
  const uint64_t counts = old ? 364 : 384;
  put32(counts, static_cast<uint32_t>(map.size()));
  put32(counts + 4, allocated);
  put_id(counts + 8, id);
  put_id(counts + 24, modification);
  put_id(counts + 40, parent);
  if (!old) put_id(counts + 56, parent_modification);
  for (size_t i = 0; i < map.size(); ++i) put32(map_at + i * 4, map[i]);
  std::ranges::copy(data, bytes.begin() + static_cast<ptrdiff_t>(data_at));
  return bytes;
}

std::vector<std::byte> Pattern(size_t length, uint64_t seed) {
  std::vector<std::byte> bytes(length);
  model::Random(seed).Fill(bytes);
  return bytes;
}

Result<std::unique_ptr<Layer>> Open(Store& store, bool writable) {
  return OpenVdi(std::make_unique<WrapperStore>(store), OpenOptions{.writable = writable});
}

Result<std::vector<std::byte>> ReadAll(Layer& layer) {
  std::vector<std::byte> bytes(layer.info().size);
  TRY(Read(layer, 0, Bytes(bytes)));
  return bytes;
}

Result<bool> IsSound(Store& store) {
  CheckReport report = TRY(CheckVdi(store, OpenOptions{}, CheckOptions{}));
  for (const CheckReport::Finding& finding : report.findings) {
    if (finding.kind != CheckReport::Finding::kLeak) {
      return Fail(Code::kCorrupt, "{}", finding.text);
    }
  }
  return report.corruptions == 0 && report.errors == 0;
}

std::vector<Configuration> Configurations() {
  HandMade old{.major = 0, .minor = 1, .size = 20 * 4096 - 100, .map = {}};
  old.map.assign(20, 0xffffffff);
  HandMade extra{.size = 40 * 512 + 77, .block_size = 512, .block_extra = 48};
  extra.map.assign(41, 0xffffffff);
  HandMade holes{.size = 30 * 1024, .block_size = 1024, .allocated = 12};
  holes.map.assign(30, 0xffffffff);
  holes.map[3] = 11;
  holes.map[7] = 4;
  holes.map[8] = 0xfffffffe;
  holes.data.resize(12 * 1024);
  return {
      {"dynamic, 4 KiB blocks", 60 * 4096, 4096, {}},
      {"odd size, 64 KiB blocks", 5 * 65536 + 1001, 65536, {}},
      {"many slices", 20000 * 512 + 1, 512, {}},
      {"differencing", 60 * 4096 + 512, 4096, {}, true},
      {"fixed", 40 * 4096 + 3, 4096, {{"subformat", "fixed"}}},
      {"version 0", old.size, 4096, {}, false, old},
      {"extra data", extra.size, 512, {}, false, extra},
      {"with holes", holes.size, 1024, {}, false, holes},
  };
}

model::Subject SubjectOf(const Configuration& configuration) {
  model::Subject subject;
  subject.name = configuration.name;
  subject.size = configuration.size;
  subject.unit = configuration.block;
  subject.create = [=](Store& store) -> Result<> {
    if (configuration.image.size != 0) {
      TRY(store.Write(0, ConstBytes(configuration.image.Bytes())));
      return store.Sync();
    }
    CreateOptions options{.size = configuration.size, .options = configuration.options};
    options.options["block_size"] = fmt::format("{}", configuration.block);
    if (configuration.parent) {
      options.parent = Reference{Reference::kParent, "parent.vdi", "vdi"};
      ParentFile& parent = options.parent_file.emplace();
      parent.info.format = "vdi";
      parent.info.identity = {"01010101-0101-0101-0101-010101010101",
                              "02020202-0202-0202-0202-020202020202"};
    }
    return CreateVdi(store, options);
  };
  subject.open = [](Store& store) { return Open(store); };
  subject.check = IsSound;
  return subject;
}

}  // namespace platter::vdi
