// Replies that are never copied: where the bytes of a READ lie in files.
#pragma once

#include <cstddef>
#include <span>

#include "base/range.h"
#include "io/layer.h"
#include "nbd/outbox.h"

namespace platter::nbd {

// The runs of files that hold `range` of the layer, if all of it is plain data of files that are
// open for reading only, and sending it waits for no device; otherwise, or if `out` has no room for
// all, none. Returns how many. Any thread.
//
// Why for reading only: a socket takes a reference to the file's page, not its content. Until the
// client has received it, which nothing tells us, the host space would have to be kept from being
// given to other guest bytes; in a store that nobody writes that cannot happen.
// The descriptors are good as long as the layer is there: a disk that is served keeps its files.
size_t TryFindFileBytes(Layer& layer, Range range, std::span<FileBytes> out);

}  // namespace platter::nbd
