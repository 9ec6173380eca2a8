// The content hash: one digest for what a disk holds, the same whatever image format, allocation
// or compression holds it, computed in parallel, and cheap where the disk is empty.
//
// Definition of "sha256-tree-64k", complete, so that others can compute it:
//
//   - The content is the disk's `size` bytes as its user reads them. It is cut into blocks of 65536
//     bytes; the last one is padded with zero bytes to that length. There are n = ceil(size /
//     65536).
//   - The digest of a block is SHA-256(0x00 || the 65536 bytes). (0x00 is one byte.)
//   - These n digests, in order, are level 0. While a level has more than one digest, the next
//   level
//     has one for each 256 consecutive digests of it (the last group may have fewer, even one):
//     SHA-256(0x01 || the digests of the group, 32 bytes each, in order).
//   - The content hash is SHA-256(0x02 || size as 8 bytes, little-endian || the single digest of
//   the
//     last level); for size 0, without that digest.
//
// It is printed as "sha256-tree-64k:" and 64 lower-case hexadecimal digits. The first byte keeps
// blocks, nodes and the root apart (no block can pose as a node); the size tells disks apart that
// differ only in zeros at the end. A run of zero blocks costs O(log n): whole groups of them have
// digests that depend on the level alone. The definition is fixed: another one gets another name.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "io/codec/hash.h"

namespace platter {

// From digests of blocks, which several threads may compute, to the content hash. One thread.
class ContentHash {
 public:
  static constexpr std::string_view kName = "sha256-tree-64k";
  static constexpr uint64_t kBlock = 65536;  // bytes
  static constexpr size_t kFanOut = 256;

  // `size`: of the disk, in bytes. Every block of it is to be added, in ascending order.
  explicit ContentHash(uint64_t size) : size_(size) {}

  // The digest of one block: 1 to kBlock bytes, padded with zeros. Any thread.
  static Sha256Digest Leaf(ConstBytes block);

  // `index`: the block's offset / kBlock, which must be the next one that was not added yet.
  void AddLeaf(uint64_t index, const Sha256Digest& digest);
  // `count` blocks of zeros.
  void AddZeros(uint64_t count);

  uint64_t next() const { return next_; }  // the block to be added next

  Sha256Digest Finish();  // once, last, when all blocks are added

  static std::string Print(const Sha256Digest& digest);  // "sha256-tree-64k:3a..."

 private:
  // Digests of one level that do not make a whole group yet: fewer than kFanOut.
  using Pending = std::vector<Sha256Digest>;

  void Push(size_t level, const Sha256Digest& digest);
  void PushZeros(size_t level, uint64_t count);

  uint64_t size_;
  uint64_t next_ = 0;
  std::vector<Pending> levels_;
};

// From the content itself, in ascending order and pieces of any size, to the content hash. One
// thread.
class ContentHasher {
 public:
  explicit ContentHasher(uint64_t size) : size_(size), tree_(size) {}

  void Add(ConstBytes bytes);
  void AddZeros(uint64_t bytes);
  Sha256Digest Finish();  // once, last, when `size` bytes are added

 private:
  void FlushBlock();

  uint64_t size_;
  uint64_t at_ = 0;  // bytes added
  ContentHash tree_;
  std::vector<std::byte> block_;  // the bytes of a block that is not whole yet
};

}  // namespace platter
