#include "nbd/outbox.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace platter::nbd {
namespace {

constexpr size_t kWorthCopying = 8 * kKiB;  // less than an element of its own costs

}  // namespace

Bytes Outbox::Append(size_t size) {
  if (chunks_.empty() || chunks_.back().memory.size() - chunks_.back().end < size) {
    chunks_.push_back({Buffer(std::max(size, chunk_))});
  }
  Chunk& last = chunks_.back();
  Bytes piece = last.memory.bytes().subspan(last.end, size);
  last.end += size;
  size_ += size;
  return piece;
}

void Outbox::Append(ConstBytes bytes) {
  if (!bytes.empty()) std::ranges::copy(bytes, Append(bytes.size()).begin());
}

void Outbox::TakeBack(uint64_t size) {
  CHECK(size <= size_);
  while (size_ > size) {
    Chunk& last = chunks_.back();
    size_t part = std::min<uint64_t>(last.end - last.begin, size_ - size);
    last.end -= part;
    size_ -= part;
    if (last.begin == last.end && chunks_.size() > 1) chunks_.pop_back();
  }
}

void Outbox::Take(Outbox&& other) {
  for (Chunk& chunk : other.chunks_) {
    const size_t size = chunk.end - chunk.begin;
    if (size <= kWorthCopying) {
      Append(std::as_const(chunk.memory).bytes().subspan(chunk.begin, size));
    } else {
      chunks_.push_back(std::move(chunk));
      size_ += size;
    }
  }
  other.chunks_.clear();
  other.size_ = 0;
}

size_t Outbox::Front(std::span<iovec> out) const {
  size_t count = 0;
  for (const Chunk& chunk : chunks_) {
    if (count == out.size()) break;
    if (chunk.begin == chunk.end) continue;
    out[count++] = {const_cast<std::byte*>(chunk.memory.bytes().data()) + chunk.begin,
                    chunk.end - chunk.begin};
  }
  return count;
}

void Outbox::Consume(size_t size) {
  CHECK(size <= size_);
  size_ -= size;
  while (!chunks_.empty()) {
    Chunk& first = chunks_.front();
    size_t part = std::min(size, first.end - first.begin);
    first.begin += part;
    size -= part;
    if (first.begin < first.end) return;
    // The last one of the shared size serves again.
    if (chunks_.size() == 1 && chunk_ > 0 && first.memory.size() == chunk_) {
      first.begin = first.end = 0;
      return;
    }
    chunks_.pop_front();
  }
}

}  // namespace platter::nbd
