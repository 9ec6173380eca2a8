#include "io/codec/content_hash.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/endian.h"
#include "base/math.h"
#include "io/codec/codec_test_util.h"

namespace platter {
namespace {

using testing::Buffer;
using testing::RandomBytes;

// The definition in content_hash.h, written down once more without any of its short cuts.
std::string Model(ConstBytes content) {
  auto digest = [](std::byte tag, ConstBytes a, ConstBytes b = {}) {
    Buffer all = {tag};
    all.insert(all.end(), a.begin(), a.end());
    all.insert(all.end(), b.begin(), b.end());
    Sha256Digest made = Sha256::Of(all);
    return Buffer(made.begin(), made.end());
  };
  std::vector<Buffer> level;
  for (size_t at = 0; at < content.size(); at += 65536) {
    Buffer block(65536);
    std::ranges::copy(content.subspan(at, std::min<size_t>(65536, content.size() - at)),
                      block.begin());
    level.push_back(digest(std::byte{0}, block));
  }
  while (level.size() > 1) {
    std::vector<Buffer> above;
    for (size_t first = 0; first < level.size(); first += 256) {
      Buffer group;
      for (size_t i = first; i < std::min(first + 256, level.size()); ++i) {
        group.insert(group.end(), level[i].begin(), level[i].end());
      }
      above.push_back(digest(std::byte{1}, group));
    }
    level = above;
  }
  return "sha256-tree-64k:" + Hex(digest(std::byte{2}, AsBytes(le64(content.size())),
                                         level.empty() ? ConstBytes() : ConstBytes(level[0])));
}

std::string HashOf(ConstBytes content) {
  ContentHasher hasher(content.size());
  hasher.Add(content);
  return ContentHash::Print(hasher.Finish());
}

TEST(ContentHashTest, KnownDigests) {
  // Computed by a separate program from the definition. They must never change.
  EXPECT_EQ(HashOf({}),
            "sha256-tree-64k:4322fd2bc0a137d1375b37b3b2e2b4715b3d3dd7ca9682438d4fea0f8437fad3");
  EXPECT_EQ(HashOf(AsBytes(std::string_view("abc"))),
            "sha256-tree-64k:33b870cae3b3dc525bf1054d3d536bc157ec5f6984204b0347ab6f58f14d77f4");
  EXPECT_EQ(HashOf(Buffer(1 << 20)),
            "sha256-tree-64k:ea9219ead5387324ad5be080ee48effdd6dd65aeab8fe4de9a8454983c8c68ea");
  Buffer pattern(65536 * 300 + 5);
  for (size_t i = 0; i < pattern.size(); ++i) {
    pattern[i] = static_cast<std::byte>(i * 7 + i / 65536);
  }
  EXPECT_EQ(HashOf(pattern),
            "sha256-tree-64k:b00a5e2d141bd71a669408b79c8d318fc71d76fcb2de4a42ec788f3bf1eb8b81");
}

TEST(ContentHashTest, AnEmptyDiskOf64TiBIsCheap) {
  ContentHasher hasher(64 * kTiB);
  hasher.AddZeros(64 * kTiB);
  EXPECT_EQ(ContentHash::Print(hasher.Finish()),
            "sha256-tree-64k:9ba24a0037818b4059fd5e7cfe4b2917f675e96334bb385a67c4c8b143dfc052");
  ContentHasher whole(UINT64_MAX);
  whole.AddZeros(UINT64_MAX);
  whole.Finish();
}

TEST(ContentHashTest, SizesAroundTheEdgesAgreeWithTheModel) {
  for (uint64_t size :
       {uint64_t{1}, uint64_t{65535}, uint64_t{65536}, uint64_t{65537}, uint64_t{2 * 65536},
        uint64_t{255 * 65536}, uint64_t{256 * 65536}, uint64_t{256 * 65536 + 1},
        uint64_t{257 * 65536}, uint64_t{512 * 65536}, uint64_t{513 * 65536}}) {
    Buffer content = RandomBytes(size, size);
    EXPECT_EQ(HashOf(content), Model(content)) << size;
    Buffer zeros(size);
    ContentHasher hasher(size);
    hasher.AddZeros(size);
    EXPECT_EQ(ContentHash::Print(hasher.Finish()), Model(zeros)) << size;
  }
}

TEST(ContentHashTest, AnyWayToFeedItGivesTheSame) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 30; ++round) {
    // Data and zeros, of which some are whole groups.
    uint64_t size = random() % (600 * 65536) + 1;
    Buffer content(size);
    for (int runs = 0; runs < 4; ++runs) {
      uint64_t at = random() % size;
      Buffer data = RandomBytes(std::min<uint64_t>(size - at, random() % 300000), random());
      std::ranges::copy(data, content.begin() + static_cast<ptrdiff_t>(at));
    }
    std::string expect = Model(content);
    SCOPED_TRACE(round);

    ContentHasher hasher(size);  // ragged pieces, zeros sometimes said to be zeros
    for (uint64_t at = 0; at < size;) {
      uint64_t piece = std::min<uint64_t>(
          size - at, random() % 5 ? random() % 200000 + 1 : random() % (400 * 65536) + 1);
      ConstBytes bytes = ConstBytes(content).subspan(at, piece);
      if (IsZero(bytes) && random() % 2) {
        hasher.AddZeros(piece);
      } else {
        hasher.Add(bytes);
      }
      at += piece;
    }
    EXPECT_EQ(ContentHash::Print(hasher.Finish()), expect);

    ContentHash tree(size);  // digests of blocks, runs of zero blocks
    for (uint64_t block = 0; block * 65536 < size;) {
      auto at = [&](uint64_t b) {
        return ConstBytes(content).subspan(b * 65536, std::min<uint64_t>(65536, size - b * 65536));
      };
      uint64_t zeros = 0;
      while ((block + zeros) * 65536 < size && IsZero(at(block + zeros))) ++zeros;
      if (zeros > 0) {
        tree.AddZeros(zeros);
        block += zeros;
      } else {
        tree.AddLeaf(block, ContentHash::Leaf(at(block)));
        ++block;
      }
    }
    EXPECT_EQ(ContentHash::Print(tree.Finish()), expect);
  }
}

TEST(ContentHashTest, DiffersWhereTheContentDoes) {
  Buffer a(200000), b(200001), c(200000);
  c.back() = std::byte{1};
  EXPECT_NE(HashOf(a), HashOf(b));  // longer by one zero
  EXPECT_NE(HashOf(a), HashOf(c));
}

TEST(ContentHashDeathTest, MissingOrMisplacedBlocksAreBugs) {
  EXPECT_DEATH(
      {
        ContentHash tree(3 * 65536);
        tree.AddLeaf(1, ContentHash::Leaf(Buffer(1)));
      },
      "index == next_");
  EXPECT_DEATH(
      {
        ContentHash tree(3 * 65536);
        tree.AddZeros(2);
        tree.Finish();
      },
      "next_ == ");
}

}  // namespace
}  // namespace platter
