// Outbox: bytes on their way to a peer, in the order in which they were put.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <deque>
#include <span>

#include "base/bytes.h"
#include "io/buffer.h"

namespace platter::nbd {

// Used by one thread at a time.
class Outbox {
 public:
  // Small pieces share memory of `chunk` bytes; 0: each piece has its own.
  explicit Outbox(size_t chunk = 0) : chunk_(chunk) {}

  // `size` bytes at the end, for the caller to fill before anything is sent; valid until TakeBack
  // or Consume.
  Bytes Append(size_t size);
  void Append(ConstBytes bytes);
  template <class T>
  void Put(const T& structure) {
    Append(AsBytes(structure));
  }

  // Takes back what was appended since size() was `size`.
  void TakeBack(uint64_t size);

  // Moves everything in `other` to the end of this.
  void Take(Outbox&& other);

  bool empty() const { return size_ == 0; }
  uint64_t size() const { return size_; }  // bytes

  // The first bytes, as many as `out` can describe; returns how many elements are used.
  size_t Front(std::span<iovec> out) const;
  // The first `size` bytes have been sent.
  void Consume(size_t size);

 private:
  struct Chunk {
    Buffer memory;
    size_t begin = 0, end = 0;
  };

  const size_t chunk_;
  std::deque<Chunk> chunks_;
  uint64_t size_ = 0;
};

}  // namespace platter::nbd
