#include "formats/qcow2/qcow2_in_place.h"

#include "formats/qcow2/qcow2_amend.h"
#include "formats/qcow2/qcow2_compact.h"

namespace platter {

constinit const InPlace kQcow2InPlace = {
    .amend_options = qcow2::kAmendOptions,
    .amend = qcow2::AmendQcow2,
    .compact = qcow2::CompactQcow2,
};

}  // namespace platter
