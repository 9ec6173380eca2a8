#include "io/codec/content_hash.h"

#include <algorithm>

#include "base/check.h"
#include "base/endian.h"
#include "base/math.h"

namespace platter {
namespace {

constexpr std::byte kLeafTag{0}, kNodeTag{1}, kRootTag{2};
// 256^7 blocks are more than 2^64 bytes have.
constexpr size_t kLevels = 8;

Sha256Digest HashLeaf(ConstBytes block) {
  static constexpr std::array<std::byte, ContentHash::kBlock> kPadding = {};
  Sha256 hash;
  hash.Update(ConstBytes(&kLeafTag, 1));
  hash.Update(block);
  hash.Update(ConstBytes(kPadding).subspan(block.size()));
  return hash.Finish();
}

Sha256Digest HashNode(std::span<const Sha256Digest> digests) {
  Sha256 hash;
  hash.Update(ConstBytes(&kNodeTag, 1));
  hash.Update(std::as_bytes(digests));
  return hash.Finish();
}

// The digest of a whole subtree of zeros whose root is on `level`.
const Sha256Digest& ZeroDigest(size_t level) {
  static const std::array<Sha256Digest, kLevels> digests = [] {
    std::array<Sha256Digest, kLevels> made;
    made[0] = HashLeaf({});
    for (size_t i = 1; i < kLevels; ++i) {
      made[i] = HashNode(std::vector<Sha256Digest>(ContentHash::kFanOut, made[i - 1]));
    }
    return made;
  }();
  return digests[level];
}

}  // namespace

Sha256Digest ContentHash::Leaf(ConstBytes block) {
  CHECK(!block.empty() && block.size() <= kBlock);
  return IsZero(block) ? ZeroDigest(0) : HashLeaf(block);
}

void ContentHash::AddLeaf(uint64_t index, const Sha256Digest& digest) {
  CHECK(index == next_);
  ++next_;
  Push(0, digest);
}

void ContentHash::AddZeros(uint64_t count) {
  next_ += count;
  PushZeros(0, count);
}

void ContentHash::Push(size_t level, const Sha256Digest& digest) {
  if (levels_.size() <= level) levels_.resize(level + 1);
  Pending& pending = levels_[level];
  pending.push_back(digest);
  if (pending.size() < kFanOut) return;
  Sha256Digest node = HashNode(pending);
  pending.clear();
  Push(level + 1, node);
}

void ContentHash::PushZeros(size_t level, uint64_t count) {
  if (count == 0) return;
  if (levels_.size() <= level) levels_.resize(level + 1);
  // One by one up to the end of a group that was begun, whole groups on the level above, the rest
  // one by one: fewer than 2 * kFanOut on each level.
  uint64_t begun = levels_[level].size();
  uint64_t head = begun == 0 ? 0 : std::min<uint64_t>(count, kFanOut - begun);
  for (uint64_t i = 0; i < head; ++i) Push(level, ZeroDigest(level));
  count -= head;
  PushZeros(level + 1, count / kFanOut);
  for (uint64_t i = 0; i < count % kFanOut; ++i) Push(level, ZeroDigest(level));
}

Sha256Digest ContentHash::Finish() {
  CHECK(next_ == DivideUp(size_, kBlock));
  // Close the groups from the bottom up. The last level is the first one that has a single digest
  // and nothing above it.
  for (size_t level = 0; level < levels_.size(); ++level) {
    if (levels_[level].empty()) continue;
    bool last = level + 1 == levels_.size();
    if (last && levels_[level].size() == 1) break;
    Sha256Digest node = HashNode(levels_[level]);
    levels_[level].clear();
    Push(level + 1, node);
  }
  Sha256 root;
  root.Update(ConstBytes(&kRootTag, 1));
  root.Update(AsBytes(le64(size_)));
  if (size_ > 0) root.Update(levels_.back().front());
  return root.Finish();
}

std::string ContentHash::Print(const Sha256Digest& digest) {
  return std::string(kName) + ":" + Hex(digest);
}

void ContentHasher::FlushBlock() {
  tree_.AddLeaf(tree_.next(), ContentHash::Leaf(block_));
  block_.clear();
}

void ContentHasher::Add(ConstBytes bytes) {
  CHECK(FitsIn(at_, bytes.size(), size_));
  at_ += bytes.size();
  while (!bytes.empty()) {
    if (block_.empty() && bytes.size() >= ContentHash::kBlock) {
      tree_.AddLeaf(tree_.next(), ContentHash::Leaf(bytes.first(ContentHash::kBlock)));
      bytes = bytes.subspan(ContentHash::kBlock);
      continue;
    }
    ConstBytes piece = bytes.first(std::min(bytes.size(), ContentHash::kBlock - block_.size()));
    block_.insert(block_.end(), piece.begin(), piece.end());
    bytes = bytes.subspan(piece.size());
    if (block_.size() == ContentHash::kBlock) FlushBlock();
  }
}

void ContentHasher::AddZeros(uint64_t bytes) {
  CHECK(FitsIn(at_, bytes, size_));
  at_ += bytes;
  if (!block_.empty()) {
    uint64_t rest = std::min<uint64_t>(bytes, ContentHash::kBlock - block_.size());
    block_.resize(block_.size() + rest);
    bytes -= rest;
    if (block_.size() == ContentHash::kBlock) FlushBlock();
  }
  tree_.AddZeros(bytes / ContentHash::kBlock);
  block_.resize(block_.size() + bytes % ContentHash::kBlock);
}

Sha256Digest ContentHasher::Finish() {
  CHECK(at_ == size_);
  if (!block_.empty()) FlushBlock();
  return tree_.Finish();
}

}  // namespace platter
