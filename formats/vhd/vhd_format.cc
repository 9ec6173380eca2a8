// The format's entry in the registry.
#include "formats/vhd/vhd.h"
#include "formats/vhd/vhd_check.h"
#include "formats/vhd/vhd_create.h"
#include "formats/vhd/vhd_layer.h"
#include "formats/vhd/vhd_parse.h"
#include "formats/vhd/vhd_set_parent.h"

namespace platter {
namespace {

// A header decides before a trailer: what has another format's header is that.
int Probe(ConstBytes head, ConstBytes tail, uint64_t /*size*/) {
  if (vhd::HasFooterCookie(head)) return 100;
  for (uint64_t length : {vhd::kSector, vhd::kShortFooter}) {
    if (tail.size() >= length && vhd::HasFooterCookie(tail.last(length))) return 50;
  }
  return 0;
}

}  // namespace

constinit const Format kVhdFormat = {
    .name = "vpc",
    .create_options = vhd::kCreateOptions,
    .probe = Probe,
    .open = vhd::OpenVhd,
    .create = vhd::CreateVhd,
    .check = vhd::CheckVhd,
    .measure = vhd::MeasureVhd,
    .set_parent = vhd::SetVhdParent,
};

}  // namespace platter
