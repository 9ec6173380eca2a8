#include <utility>

#include "base/bytes.h"
#include "formats/vhdx/vhdx_layer.h"

namespace platter::vhdx {

namespace {

Result<std::unique_ptr<Layer>> Open(std::unique_ptr<Store> file, const OpenOptions& options) {
  std::unique_ptr<ReplayedStore> replayed;
  Image image = TRY(ReadImage(*file, replayed));
  if (options.writable && !options.info_only) {
    TRY(FinishReplay(*file, image, std::move(replayed)));
  }
  Info info = MakeInfo(image);
  info.writable = options.writable;
  for (const Reference& reference : info.references) {
    if (reference.paths.empty()) {
      return Fail(Code::kCorrupt, "parent locator: it names no parent");
    }
  }
  uint64_t size = TRY((replayed ? static_cast<Store&>(*replayed) : *file).Size());
  return std::make_unique<VhdxLayer>(std::move(file), std::move(replayed), std::move(image),
                                     std::move(info), size, options.fresh);
}

}  // namespace

Result<std::unique_ptr<Layer>> OpenVhdx(std::unique_ptr<Store> store, const OpenOptions& options) {
  for (const auto& [option, value] : options.options) {
    return Fail(Code::kUnsupported, "there is no option '{}' when opening", Printable(option));
  }
  if (!options.snapshot.empty()) {
    return Fail(Code::kUnsupported, "the format has no internal snapshots");
  }
  return Open(std::move(store), options);
}

}  // namespace platter::vhdx
