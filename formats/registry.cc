#include "base/bytes.h"
#include "formats/format.h"
#include "formats/qcow2/qcow2.h"
#include "formats/raw/raw.h"
#include "formats/vdi/vdi.h"
#include "formats/vhd/vhd.h"
#include "formats/vhdx/vhdx.h"
#include "formats/vmdk/vmdk.h"

namespace platter {

std::span<const Format* const> AllFormats() {
  static constexpr const Format* kFormats[] = {&kQcow2Format, &kVdiFormat,  &kVhdFormat,
                                               &kVhdxFormat,  &kVmdkFormat, &kRawFormat};
  return kFormats;
}

Result<const Format*> FindFormat(std::string_view name) {
  if (name == "vhd") name = "vpc";  // QEMU named it after Virtual PC; the world says VHD
  std::string list;
  for (const Format* format : AllFormats()) {
    if (format->name == name) return format;
    list += fmt::format("{}{}", list.empty() ? "" : ", ", format->name);
  }
  return Fail(Code::kUnsupported, "format '{}' is not supported; there are: {}", Printable(name),
              list);
}

}  // namespace platter
