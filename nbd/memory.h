// Memory for what is on its way: payloads of requests, and replies.
//
// A fresh buffer of 256 KiB costs more than filling it: the kernel has to find and clear a page for
// each 4 KiB of it, and takes them away again when it is freed. So what is no longer used is kept
// for the next one, up to a bound for the whole process; what was used last, and is still in the
// processor's cache, first. Sizes are rounded up to powers of two for that.
#pragma once

#include <cstddef>
#include <utility>

#include "base/bytes.h"

namespace platter::nbd {

// Like a Buffer: page-aligned, uninitialized. Made and destroyed by any thread.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t size);
  ~Memory();
  Memory(Memory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  Bytes bytes() { return {data_, size_}; }
  ConstBytes bytes() const { return {data_, size_}; }
  std::byte* data() { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace platter::nbd
