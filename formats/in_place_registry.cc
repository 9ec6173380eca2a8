#include "formats/in_place_registry.h"

#include "formats/qcow2/qcow2.h"
#include "formats/qcow2/qcow2_in_place.h"

namespace platter {

const InPlace* FindInPlace(const Format& format) {
  return &format == &kQcow2Format ? &kQcow2InPlace : nullptr;
}

}  // namespace platter
