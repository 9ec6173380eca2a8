// Creation and measuring of qcow2 images; see Format in formats/format.h.
#pragma once

#include <cstdint>
#include <span>

#include "base/range.h"
#include "base/result.h"
#include "formats/format.h"
#include "io/store.h"

namespace platter::qcow2 {

// Writes a new image. What a crash leaves is no image: the header is written last.
Result<> CreateQcow2(Store& store, const CreateOptions& options);

// As qemu-img measure computes.
Result<MeasureResult> MeasureQcow2(const CreateOptions& options, uint64_t allocated_bytes,
                                   std::span<const Range> data);

}  // namespace platter::qcow2
