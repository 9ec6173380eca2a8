#include "nbd/export.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace platter::nbd {

ResizableSize::ResizableSize(std::shared_ptr<Layer> layer,
                             std::function<Result<>(uint64_t)> allowed)
    : layer_(std::move(layer)),
      allowed_(std::move(allowed)),
      now_(layer_->info().size),
      largest_(now_.load()) {}

Result<> ResizableSize::Change(uint64_t size) {
  std::scoped_lock lock(mutex_);
  const uint64_t before = now_.load();
  if (size == 0) return Fail(Code::kRefused, "a disk cannot have no bytes");
  if (allowed_) TRY(allowed_(size));
  // Nobody may still ask for what is about to go, nor yet for what is about to come.
  now_.store(std::min(before, size));
  Result<> resized = layer_->resizer()->Resize(size, Preallocation::kOff);
  now_.store(resized ? size : before);
  largest_.store(std::max(largest_.load(), now_.load()));
  return resized;
}

}  // namespace platter::nbd
