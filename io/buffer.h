// Buffer: memory for moving data, aligned for direct I/O.
#pragma once

#include <cstdlib>
#include <memory>

#include "base/bytes.h"
#include "base/check.h"

namespace platter {

class Buffer {
 public:
  static constexpr size_t kAlign = 4096;

  Buffer() = default;
  // `size` bytes, uninitialized. Sizes are ours, never an image's, so failure is fatal.
  explicit Buffer(size_t size)
      : data_(static_cast<std::byte*>(
            std::aligned_alloc(kAlign, (size + kAlign - 1) / kAlign * kAlign))),
        size_(size) {
    CHECK(size == 0 || data_ != nullptr);
  }
  Bytes bytes() { return {data_.get(), size_}; }
  ConstBytes bytes() const { return {data_.get(), size_}; }
  std::byte* data() { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte[], Free> data_;
  size_t size_ = 0;
};

}  // namespace platter
