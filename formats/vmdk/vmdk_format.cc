// The format's entry in the registry.
#include "formats/signatures.h"
#include "formats/vmdk/vmdk.h"
#include "formats/vmdk/vmdk_check.h"
#include "formats/vmdk/vmdk_create.h"
#include "formats/vmdk/vmdk_layer.h"
#include "formats/vmdk/vmdk_set_parent.h"

namespace platter {
namespace {

// A sparse extent of any kind, or a descriptor; what we do not read is for open to refuse by name.
int Probe(ConstBytes head, ConstBytes /*tail*/, uint64_t size) {
  return SignatureName(head, {}, size).starts_with("VMDK") ? 100 : 0;
}

}  // namespace

constinit const Format kVmdkFormat = {
    .name = "vmdk",
    .create_options = vmdk::kCreateOptions,
    .probe = Probe,
    .open = vmdk::OpenVmdk,
    .create = vmdk::CreateVmdk,
    .check = vmdk::CheckVmdk,
    .measure = vmdk::MeasureVmdk,
    .set_parent = vmdk::SetVmdkParent,
};

}  // namespace platter
