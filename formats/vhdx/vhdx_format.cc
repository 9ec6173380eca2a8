// The format's entry in the registry.
#include "formats/vhdx/vhdx.h"
#include "formats/vhdx/vhdx_layer.h"
#include "formats/vhdx/vhdx_parse.h"

namespace platter {
namespace {

int Probe(ConstBytes head, ConstBytes /*tail*/, uint64_t /*size*/) {
  return vhdx::HasSignature(head) ? 100 : 0;
}

Result<> Create(Store&, const CreateOptions&) { return Fail(Code::kUnsupported, "creating vhdx"); }
Result<MeasureResult> Measure(const CreateOptions&, uint64_t, std::span<const Range>) {
  return Fail(Code::kUnsupported, "measuring vhdx");
}

}  // namespace

constinit const Format kVhdxFormat = {
    .name = "vhdx",
    .create_options = {},
    .probe = Probe,
    .open = vhdx::OpenVhdx,
    .create = Create,
    .check = nullptr,
    .measure = Measure,
};

}  // namespace platter
