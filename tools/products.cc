#include "tools/products.h"

#include <algorithm>

#include "base/bytes.h"
#include "base/math.h"
#include "base/size.h"
#include "tools/image_options.h"

namespace platter {

namespace {

constexpr Product kProducts[] = {
    {"vmware", "vmdk", "subformat=monolithicSparse", "subformat=monolithicSparse", 1,
     "one growing file, which Workstation and Fusion use as it is"},
    {"esxi", "vmdk", "subformat=streamOptimized", "subformat=monolithicFlat", 1,
     "streamOptimized is what OVF import takes; an empty disk is flat, for vmkfstools -i"},
    {"virtualbox", "vdi", "", "", 1, "its own format, growing"},
    {"hyperv", "vhdx", "subformat=dynamic", "subformat=dynamic", kMiB,
     "growing; generation 1 and 2 machines boot it"},
    {"azure", "vpc", "subformat=fixed,force_size=on", "subformat=fixed,force_size=on", kMiB,
     "uploads have to be fixed VHDs of whole MiB"},
    {"ec2", "raw", "", "", 1, "VM Import takes raw disks of any size"},
    {"openstack", "qcow2", "compat=1.1", "compat=1.1", 1, "what Glance and Nova share best"},
    {"proxmox", "qcow2", "compat=1.1", "compat=1.1", 1, "with snapshots on directory storage"},
};

Result<const Product*> FindProduct(std::string_view name) {
  for (const Product& product : kProducts) {
    if (product.name == name) return &product;
  }
  std::string list;
  for (const Product& product : kProducts) {
    list += fmt::format("{}{}", list.empty() ? "" : ", ", product.name);
  }
  return Fail(Code::kUnsupported, "--for '{}' is not known; there are: {}", Printable(name), list);
}

}  // namespace

std::span<const Product> AllProducts() { return kProducts; }

std::vector<std::string> ProductNames() {
  std::vector<std::string> names;
  for (const Product& product : kProducts) names.emplace_back(product.name);
  return names;
}

Result<std::string> ChooseFor(ImageWish& wish, bool create) {
  if (wish.product.empty()) return std::string();
  const Product& product = *TRY(FindProduct(wish.product));
  if (wish.format == "vhd") wish.format = "vpc";
  if (!wish.format.empty() && wish.format != product.format) {
    return Fail(Code::kRefused, "--for {} means {}, and {} was asked for: leave one of them out",
                product.name, product.format, Printable(wish.format));
  }
  wish.format = product.format;
  const std::string chosen(create ? product.create_options : product.options);
  for (auto& [name, value] : TRY(ParseOptionList({chosen}))) {
    auto [given, added] = wish.options.try_emplace(name, value);
    if (!added && given->second != value) {
      return Fail(Code::kRefused, "--for {} means -o {}={}, and -o {}={} was given", product.name,
                  name, value, name, Printable(given->second));
    }
  }
  wish.multiple = product.multiple;
  std::string text = fmt::format("for {}: {}", product.name, product.format);
  if (!chosen.empty()) text += fmt::format(" with {}", chosen);
  if (product.multiple > 1) text += fmt::format(", size in whole {}", HumanSize(product.multiple));
  return text + fmt::format(" ({})", product.why);
}

}  // namespace platter
