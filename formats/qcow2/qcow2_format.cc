// The format's entry in the registry.
#include "base/bytes.h"
#include "base/endian.h"
#include "formats/qcow2/qcow2.h"
#include "formats/qcow2/qcow2_check.h"
#include "formats/qcow2/qcow2_create.h"
#include "formats/qcow2/qcow2_disk.h"
#include "formats/qcow2/qcow2_layer.h"
#include "formats/qcow2/qcow2_plan.h"
#include "formats/qcow2/qcow2_set_parent.h"
#include "formats/qcow2/qcow2_stream.h"

namespace platter {
namespace {

// Any version but 1, which is another format (qcow) with the same magic; what we do not read is
// for open to refuse by name.
int Probe(ConstBytes head, ConstBytes /*tail*/, uint64_t /*size*/) {
  auto magic = LoadAt<be32>(head, 0);
  auto version = LoadAt<be32>(head, 4);
  return magic && version && *magic == qcow2::kMagic && *version >= 2 ? 100 : 0;
}

}  // namespace

constinit const Format kQcow2Format = {
    .name = "qcow2",
    .create_options = qcow2::kCreateOptions,
    .probe = Probe,
    .open = qcow2::OpenQcow2,
    .create = qcow2::CreateQcow2,
    .check = qcow2::CheckQcow2,
    .measure = qcow2::MeasureQcow2,
    .stream = qcow2::StreamQcow2,
    .set_parent = qcow2::SetQcow2Parent,
};

}  // namespace platter
