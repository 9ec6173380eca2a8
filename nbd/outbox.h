// Outbox: bytes on their way to a peer, in the order in which they were put. Some may still be in
// files: those go from there to the socket.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <span>

#include "base/bytes.h"
#include "nbd/memory.h"

namespace platter::nbd {

// A run of bytes of an open file, which stay what they are as long as they are on their way.
struct FileBytes {
  int fd = -1;
  uint64_t offset = 0, length = 0;
};

// Used by one thread at a time.
class Outbox {
 public:
  // Pieces of up to half of `chunk` bytes, which is 128 or more, share memory of that size.
  explicit Outbox(size_t chunk = 8 * kKiB) : chunk_(chunk) {}

  // Whether AppendFile may be called.
  void AcceptFiles(bool accept) { accepts_files_ = accept; }
  bool accepts_files() const { return accepts_files_; }

  // `size` bytes at the end, for the caller to fill before anything is sent; valid until TakeBack
  // or Consume.
  Bytes Append(size_t size);
  void Append(ConstBytes bytes);
  void AppendFile(const FileBytes& bytes);
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

  // The first bytes, as many as `out` can describe and up to those of a file; returns how many
  // elements are used.
  size_t Front(std::span<iovec> out) const;
  // What comes first, if that is in a file; otherwise null.
  const FileBytes* FrontFile() const;
  // The first `size` bytes have been sent.
  void Consume(size_t size);

 private:
  struct Piece {
    std::shared_ptr<Memory> memory;  // null: of a file
    size_t begin = 0, end = 0;       // of the memory
    FileBytes file = {};

    uint64_t size() const { return memory ? end - begin : file.length; }
  };

  const size_t chunk_;
  std::deque<Piece> pieces_;
  // What small pieces share, and how much of it they have used.
  std::shared_ptr<Memory> shared_;
  size_t used_ = 0;
  uint64_t size_ = 0;
  bool accepts_files_ = false;
};

}  // namespace platter::nbd
