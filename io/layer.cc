#include "io/layer.h"

namespace platter {

Result<std::unique_ptr<Reservation>> Layer::ReservePacked(Range, std::span<const uint32_t>) {
  return Fail(Code::kUnsupported, "{}: compressed units cannot be written", info().format);
}

}  // namespace platter
