#include <utility>

#include "base/bytes.h"
#include "formats/vhdx/vhdx_layer.h"

namespace platter::vhdx {

namespace {

Result<std::unique_ptr<Layer>> Open(std::unique_ptr<Store> file, const OpenOptions& options) {
  const bool writes = options.writable && !options.info_only;
  Image image = TRY(writes ? ReadImageReplaying(file) : ReadImage(file));
  Info info = MakeInfo(image);
  info.writable = options.writable;
  for (const Reference& reference : info.references) {
    if (reference.paths.empty()) {
      return Fail(Code::kCorrupt, "parent locator: it names no parent");
    }
  }
  uint64_t size = TRY(file->Size());
  return std::make_unique<VhdxLayer>(std::move(file), std::move(image), std::move(info), size);
}

}  // namespace

Result<std::unique_ptr<Layer>> OpenVhdx(std::unique_ptr<Store> store, const OpenOptions& options) {
  std::string name = fmt::format("vhdx '{}'", store->name());
  for (const auto& [option, value] : options.options) {
    return Fail(Code::kUnsupported, "{}: there is no option '{}' when opening", name,
                Printable(option));
  }
  if (!options.snapshot.empty()) {
    return Fail(Code::kUnsupported, "{}: the format has no internal snapshots", name);
  }
  return Open(std::move(store), options).WithPrefix(name);
}

}  // namespace platter::vhdx
