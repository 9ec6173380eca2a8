// The format's entry in the registry.
#include "formats/vhdx/vhdx.h"
#include "formats/vhdx/vhdx_check.h"
#include "formats/vhdx/vhdx_create.h"
#include "formats/vhdx/vhdx_layer.h"
#include "formats/vhdx/vhdx_parse.h"
#include "formats/vhdx/vhdx_set_parent.h"

namespace platter {
namespace {

int Probe(ConstBytes head, ConstBytes /*tail*/, uint64_t /*size*/) {
  return vhdx::HasSignature(head) ? 100 : 0;
}

}  // namespace

constinit const Format kVhdxFormat = {
    .name = "vhdx",
    .create_options = vhdx::kCreateOptions,
    .probe = Probe,
    .open = vhdx::OpenVhdx,
    .create = vhdx::CreateVhdx,
    .check = vhdx::CheckVhdx,
    .measure = vhdx::MeasureVhdx,
    .set_parent = vhdx::SetVhdxParent,
};

}  // namespace platter
