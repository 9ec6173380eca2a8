// The format's entry in the registry.
#include "base/bytes.h"
#include "formats/vdi/vdi.h"
#include "formats/vdi/vdi_check.h"
#include "formats/vdi/vdi_create.h"
#include "formats/vdi/vdi_disk.h"
#include "formats/vdi/vdi_layer.h"
#include "formats/vdi/vdi_set_parent.h"

namespace platter {
namespace {

int Probe(ConstBytes head, ConstBytes /*tail*/, uint64_t /*size*/) {
  auto signature = LoadAt<le32>(head, offsetof(vdi::DiskPreHeader, signature));
  return signature && *signature == vdi::kSignature ? 100 : 0;
}

}  // namespace

constinit const Format kVdiFormat = {
    .name = "vdi",
    .create_options = vdi::kCreateOptions,
    .probe = Probe,
    .open = vdi::OpenVdi,
    .create = vdi::CreateVdi,
    .check = vdi::CheckVdi,
    .measure = vdi::MeasureVdi,
    .set_parent = vdi::SetVdiParent,
};

}  // namespace platter
