// Copy and Compare between toy layers (which allocate) and flat ones (which do not).
#include <gtest/gtest.h>

#include <random>

#include "base/check.h"
#include "io/codec/codec.h"
#include "io/engine/engine.h"
#include "io/iov.h"
#include "io/memory_store.h"
#include "io/testing/flat_layer.h"
#include "io/testing/toy_layer.h"
#include "io/testing/wrapper_layer.h"
#include "io/testing/wrapper_store.h"

namespace platter {
namespace {

constexpr uint64_t kCluster = 64 * kKiB;

std::vector<std::byte> Noise(size_t size, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(generator() | 1);
  return bytes;
}

std::vector<std::byte> Compressible(size_t size, unsigned seed) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>((i / 100 + seed) | 1);
  return bytes;
}

// A toy image with its store.
struct Toy {
  explicit Toy(ToyLayer::Options with) : options(with) {
    CHECK(ToyLayer::Create(store, options));
    layer = std::move(*ToyLayer::Open(store, options));
  }
  std::vector<std::byte> Bytes(Range range) {
    std::vector<std::byte> bytes(range.length);
    EXPECT_TRUE(Read(*layer, range.offset, platter::Bytes(bytes)));
    return bytes;
  }
  MemoryStore store;
  ToyLayer::Options options;
  std::unique_ptr<ToyLayer> layer;
};

ToyLayer::Options Sized(uint64_t size) { return {.size = size, .cluster = kCluster}; }

CopyOptions Threads(unsigned threads) {
  CopyOptions options;
  options.threads = threads;
  return options;
}

// Data in fragments of all sizes, with holes and zeroed parts between, and zeros inside data.
void Scatter(Layer& layer, unsigned seed, bool compressible = false) {
  std::mt19937 generator(seed);
  uint64_t size = layer.info().size;
  for (uint64_t at = generator() % 5000; at < size;) {
    uint64_t length =
        std::min<uint64_t>(1 + generator() % (generator() % 3 == 0 ? 900'000 : 20'000), size - at);
    auto bytes = compressible ? Compressible(length, seed) : Noise(length, generator());
    if (generator() % 3 == 0) std::fill_n(bytes.begin() + length / 3, length / 3, std::byte{0});
    ASSERT_TRUE(Write(layer, at, bytes));
    at += length + generator() % 300'000;
    if (at < size && generator() % 4 == 0) {
      ASSERT_TRUE(Zero(layer, {at, std::min<uint64_t>(size - at, 200'000)}, false));
    }
  }
}

TEST(Copy, SameBytesOutWhateverTheThreads) {
  for (bool compress : {false, true}) {
    auto options = Sized(24 * kMiB + 777);
    options.compression = Codec::kDeflate;
    Toy from(options);
    Scatter(*from.layer, 1, compress);
    std::vector<std::byte> first;
    for (unsigned threads : {1, 2, 3, 8, 8, 8}) {
      Toy to(options);
      CopyOptions copy = Threads(threads);
      copy.compress = compress;
      copy.target_is_zero = true;
      ASSERT_TRUE(Copy(*from.layer, *to.layer, {0, options.size}, copy));
      ASSERT_TRUE(to.layer->Flush());
      EXPECT_EQ(*Compare(*from.layer, *to.layer, Threads(2)), std::nullopt);
      if (first.empty()) first = to.store.Contents();
      EXPECT_TRUE(first == to.store.Contents()) << threads << " threads, compress " << compress;
    }
  }
}

TEST(Copy, BetweenAllocatingAndFlatLayers) {
  Toy from(Sized(10 * kMiB));
  Scatter(*from.layer, 2);
  MemoryStore store(10 * kMiB);
  FlatLayer flat(store);
  CopyOptions copy = Threads(4);
  copy.target_is_zero = true;
  ASSERT_TRUE(Copy(*from.layer, flat, {0, 10 * kMiB}, copy));
  EXPECT_EQ(from.Bytes({0, 10 * kMiB}), store.Contents());
  Toy back(Sized(10 * kMiB));
  ASSERT_TRUE(Copy(flat, *back.layer, {0, 10 * kMiB}, copy));
  EXPECT_EQ(back.Bytes({0, 10 * kMiB}), store.Contents());
  EXPECT_LE(back.layer->used_clusters(), from.layer->used_clusters());
}

TEST(Copy, OverwritesWhatTheTargetHeld) {
  for (unsigned seed = 1; seed < 5; ++seed) {
    Toy from(Sized(6 * kMiB)), to(Sized(6 * kMiB + 5));
    Scatter(*from.layer, seed);
    Scatter(*to.layer, seed + 100);
    auto tail = to.Bytes({6 * kMiB, 5});
    ASSERT_TRUE(Copy(*from.layer, *to.layer, {0, 6 * kMiB}, Threads(3)));
    EXPECT_EQ(from.Bytes({0, 6 * kMiB}), to.Bytes({0, 6 * kMiB}));
    EXPECT_EQ(tail, to.Bytes({6 * kMiB, 5}));
    MemoryStore store(ConstBytes(Noise(6 * kMiB, seed)));
    FlatLayer flat(store);
    ASSERT_TRUE(Copy(*from.layer, flat, {0, 6 * kMiB}, Threads(3)));
    EXPECT_EQ(from.Bytes({0, 6 * kMiB}), store.Contents());
  }
}

TEST(Copy, RaggedRangeTouchesNothingElse) {
  Toy from(Sized(6 * kMiB)), to(Sized(6 * kMiB));
  Scatter(*from.layer, 3);
  Scatter(*to.layer, 4);
  auto expected = to.Bytes({0, 6 * kMiB});
  Range range{100'001, 4 * kMiB + 3};
  std::ranges::copy(from.Bytes(range), expected.begin() + range.offset);
  ASSERT_TRUE(Copy(*from.layer, *to.layer, range, Threads(2)));
  EXPECT_EQ(to.Bytes({0, 6 * kMiB}), expected);
}

TEST(Copy, PastTheSourceZerosPastTheTargetAnError) {
  Toy from(Sized(kMiB)), to(Sized(2 * kMiB));
  ASSERT_TRUE(Write(*from.layer, 0, Noise(kMiB, 1)));
  ASSERT_TRUE(Write(*to.layer, 0, Noise(2 * kMiB, 2)));
  ASSERT_TRUE(Copy(*from.layer, *to.layer, {0, 2 * kMiB}, {}));
  EXPECT_EQ(to.Bytes({kMiB, kMiB}), std::vector<std::byte>(kMiB));
  EXPECT_EQ(Copy(*to.layer, *from.layer, {0, 2 * kMiB}, {}).error().code(), Code::kOutOfRange);
}

TEST(Copy, ZerosBecomeHolesAsTheCallerLikes) {
  MemoryStore store(ConstBytes(std::vector<std::byte>(8 * kCluster)), {});
  ASSERT_TRUE(store.Write(0, ConstBytes(Noise(8 * kCluster, 1))));
  std::vector<std::byte> zeros(2 * kCluster);
  ASSERT_TRUE(store.Write(2 * kCluster, ConstBytes(zeros)));
  FlatLayer flat(store);
  auto used = [&](uint64_t sparse) {
    Toy to(Sized(8 * kCluster));
    CopyOptions copy;
    copy.target_is_zero = true;
    copy.sparse = sparse;
    EXPECT_TRUE(Copy(flat, *to.layer, {0, 8 * kCluster}, copy));
    EXPECT_EQ(to.Bytes({0, 8 * kCluster}), store.Contents());
    return to.layer->used_clusters();
  };
  EXPECT_EQ(used(0), 8u);
  EXPECT_EQ(used(4096), 6u);
  EXPECT_EQ(used(2 * kCluster), 6u);
  EXPECT_EQ(used(3 * kCluster), 8u);
}

TEST(Copy, SkipParentLeavesTheTargetAlone) {
  auto options = Sized(6 * kMiB);
  options.has_parent = true;
  Toy from(options), to(Sized(6 * kMiB));
  Scatter(*to.layer, 1);
  auto expected = to.Bytes({0, 6 * kMiB});
  Scatter(*from.layer, 2);
  // Writes fill the ragged rest of a cluster with what shows through, here zeros.
  std::vector<Extent> map(1000);
  auto count = from.layer->Map({0, 6 * kMiB}, map);
  ASSERT_TRUE(count);
  for (const Extent& extent : std::span(map).first(*count)) {
    if (extent.kind == Kind::kParent) continue;
    std::ranges::copy(from.Bytes(extent.guest), expected.begin() + extent.guest.offset);
  }
  CopyOptions copy = Threads(3);
  copy.skip_parent = true;
  ASSERT_TRUE(Copy(*from.layer, *to.layer, {0, 6 * kMiB}, copy));
  EXPECT_TRUE(to.Bytes({0, 6 * kMiB}) == expected);
}

TEST(Copy, CompressesWhatShrinks) {
  for (Codec::Id id : {Codec::kDeflate, Codec::kZstd}) {
    auto options = Sized(3 * kMiB + 1000);
    options.compression = id;
    Toy to(options);
    MemoryStore store(options.size);
    ASSERT_TRUE(store.Write(0, ConstBytes(Compressible(kMiB, 1))));
    ASSERT_TRUE(store.Write(kMiB, ConstBytes(Noise(kMiB, 1))));
    ASSERT_TRUE(store.Write(2 * kMiB + 5000, ConstBytes(Compressible(kMiB - 4000, 1))));
    FlatLayer flat(store);
    CopyOptions copy = Threads(2);
    copy.compress = true;
    ASSERT_TRUE(Copy(flat, *to.layer, {0, options.size}, copy));
    EXPECT_EQ(to.Bytes({0, options.size}), store.Contents());
    EXPECT_LE(to.layer->used_clusters(), 16u + 4u);
    Extent extent;
    ASSERT_TRUE(to.layer->Map({3 * kMiB, 1000}, std::span(&extent, 1)));
    EXPECT_TRUE(extent.packed()) << "the short last unit, too";
  }
  Toy plain(Sized(kMiB));
  CopyOptions copy;
  copy.compress = true;
  EXPECT_EQ(Copy(*plain.layer, *plain.layer, {0, kMiB}, copy).error().code(), Code::kUnsupported);
}

// The packed bytes of a unit.
std::vector<std::byte> PackedBytes(Toy& toy, uint64_t at) {
  Extent extent;
  EXPECT_TRUE(toy.layer->Map({at, 1}, std::span(&extent, 1)));
  EXPECT_TRUE(extent.packed());
  std::vector<std::byte> bytes(extent.host.length);
  EXPECT_TRUE(toy.store.Read(extent.host.offset, Bytes(bytes)));
  return bytes;
}

TEST(Copy, PackedUnitsStayAsTheyAre) {
  auto options = Sized(4 * kMiB + 500);
  options.compression = Codec::kDeflate;
  Toy from(options), to(options);
  MemoryStore store(options.size);
  ASSERT_TRUE(store.Write(0, ConstBytes(Compressible(options.size, 1))));
  FlatLayer flat(store);
  CopyOptions copy = Threads(2);
  copy.compress = true;
  copy.level = 1;
  ASSERT_TRUE(Copy(flat, *from.layer, {0, options.size}, copy));
  ASSERT_TRUE(Write(*from.layer, 2 * kMiB, Noise(10, 1)));  // one unit is plain now
  copy.compress = false;
  copy.keep_packed = true;
  ASSERT_TRUE(Copy(*from.layer, *to.layer, {0, options.size}, copy));
  EXPECT_EQ(*Compare(*from.layer, *to.layer, {}), std::nullopt);
  for (uint64_t at : {uint64_t{0}, 3 * kCluster, 4 * kMiB}) {
    EXPECT_EQ(PackedBytes(from, at), PackedBytes(to, at));
  }
  // A damaged one is found, not copied.
  Extent extent;
  ASSERT_TRUE(from.layer->Map({3 * kCluster, 1}, std::span(&extent, 1)));
  ASSERT_TRUE(from.store.Write(extent.host.offset, ConstBytes(Noise(40, 9))));
  Toy other(options);
  EXPECT_EQ(Copy(*from.layer, *other.layer, {0, options.size}, copy).error().code(),
            Code::kCorrupt);
}

// Refuses reads of some host bytes.
struct DamagedStore : WrapperStore {
  using Store::Read;
  using WrapperStore::WrapperStore;
  Result<> Read(uint64_t at, std::span<const iovec> into) override {
    uint64_t end = at;
    for (const iovec& piece : into) end += piece.iov_len;
    if (Range::FromTo(at, end).Overlaps(damage)) return Fail(Code::kIo, "a bad sector");
    return base_.Read(at, into);
  }
  Range damage;
};

TEST(Copy, SalvagesWhatCanBeRead) {
  MemoryStore store(3 * kMiB);
  auto content = Noise(3 * kMiB, 1);
  ASSERT_TRUE(store.Write(0, ConstBytes(content)));
  DamagedStore damaged(store);
  FlatLayer flat(damaged);
  damaged.damage = {kMiB + 5000, 10'000};
  Toy to(Sized(3 * kMiB));
  auto refused = Copy(flat, *to.layer, {0, 3 * kMiB}, {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kIo);
  std::vector<Range> lost;
  CopyOptions copy = Threads(2);
  copy.salvage = true;
  copy.unreadable = [&](Range range, const Error&) { lost.push_back(range); };
  ASSERT_TRUE(Copy(flat, *to.layer, {0, 3 * kMiB}, copy));
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0], (Range{kMiB + 4096, 3 * 4096}));
  std::fill_n(content.begin() + lost[0].offset, lost[0].length, std::byte{0});
  EXPECT_TRUE(to.Bytes({0, 3 * kMiB}) == content);
}

TEST(Copy, SalvagesWhatCanBeMapped) {
  struct TornMap : WrapperLayer {
    using WrapperLayer::WrapperLayer;
    Result<size_t> Map(Range want, std::span<Extent> out) override {
      if (want.Overlaps({8 * kMiB, 200'000})) return Fail(Code::kCorrupt, "a bad table");
      return base_.Map(want, out);
    }
  };
  Toy from(Sized(20 * kMiB)), to(Sized(20 * kMiB));
  auto content = Noise(20 * kMiB, 1);
  ASSERT_TRUE(Write(*from.layer, 0, content));
  TornMap torn(*from.layer);
  EXPECT_EQ(Copy(torn, *to.layer, {0, 20 * kMiB}, {}).error().code(), Code::kCorrupt);
  Range lost{};
  CopyOptions copy = Threads(2);
  copy.salvage = true;
  copy.unreadable = [&](Range range, const Error&) {
    EXPECT_TRUE(lost.empty() || lost.end() == range.offset);
    lost = Range::FromTo(lost.empty() ? range.offset : lost.offset, range.end());
  };
  ASSERT_TRUE(Copy(torn, *to.layer, {0, 20 * kMiB}, copy));
  EXPECT_EQ(lost, (Range{8 * kMiB, 256 * kKiB}));
  std::fill_n(content.begin() + lost.offset, lost.length, std::byte{0});
  EXPECT_TRUE(to.Bytes({0, 20 * kMiB}) == content);
}

TEST(Copy, TellsProgressAndStopsWhenCancelled) {
  Toy from(Sized(20 * kMiB)), to(Sized(20 * kMiB));
  ASSERT_TRUE(Write(*from.layer, 5 * kMiB, Noise(3 * kMiB, 1)));
  Progress progress;
  CopyOptions copy = Threads(2);
  copy.progress = &progress;
  ASSERT_TRUE(Copy(*from.layer, *to.layer, {0, 20 * kMiB}, copy));
  EXPECT_EQ(progress.total, 20 * kMiB);
  EXPECT_EQ(progress.done, 20 * kMiB);
  EXPECT_EQ(progress.moved, 3 * kMiB);
  progress.cancel = true;
  auto done = Copy(*from.layer, *to.layer, {0, 20 * kMiB}, copy);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), Code::kRefused);
}

TEST(Copy, KeepsToTheRate) {
  Toy from(Sized(8 * kMiB)), to(Sized(8 * kMiB));
  ASSERT_TRUE(Write(*from.layer, 0, Noise(8 * kMiB, 1)));
  CopyOptions copy = Threads(2);
  copy.bytes_per_second = 16 * kMiB;
  auto start = std::chrono::steady_clock::now();
  ASSERT_TRUE(Copy(*from.layer, *to.layer, {0, 8 * kMiB}, copy));
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(150));
}

TEST(Copy, AFailingTargetEndsTheCopyWithItsError) {
  auto options = Sized(8 * kMiB);
  options.host_limit = 50;
  Toy from(Sized(8 * kMiB)), to(options);
  ASSERT_TRUE(Write(*from.layer, 0, Noise(8 * kMiB, 1)));
  EXPECT_EQ(Copy(*from.layer, *to.layer, {0, 8 * kMiB}, Threads(4)).error().code(), Code::kNoSpace);
}

TEST(Copy, CostsWhatIsAllocated) {
  constexpr uint64_t kSize = 64 * kTiB;
  MemoryStore a(kSize), b(kSize);
  for (uint64_t at = 12345; at < kSize; at += 5 * kTiB + 99'999) {
    ASSERT_TRUE(a.Write(at, ConstBytes(Noise(100'000, 1))));
  }
  FlatLayer from(a), to(b);
  auto start = std::chrono::steady_clock::now();
  CopyOptions copy = Threads(2);
  copy.target_is_zero = true;
  ASSERT_TRUE(Copy(from, to, {0, kSize}, copy));
  EXPECT_EQ(*Compare(from, to, Threads(2)), std::nullopt);
  EXPECT_LE(b.allocated(), a.allocated());
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST(Compare, FindsTheFirstOfManyDifferences) {
  std::mt19937 generator(7);
  Toy a(Sized(12 * kMiB)), b(Sized(12 * kMiB));
  Scatter(*a.layer, 5);
  ASSERT_TRUE(Copy(*a.layer, *b.layer, {0, 12 * kMiB}, {}));
  EXPECT_EQ(*Compare(*a.layer, *b.layer, Threads(4)), std::nullopt);
  uint64_t first = UINT64_MAX;
  auto expected = a.Bytes({0, 12 * kMiB});
  for (int i = 0; i < 30; ++i) {
    uint64_t at = generator() % (12 * kMiB);
    auto other = static_cast<std::byte>(static_cast<unsigned>(expected[at]) ^ 0x55);
    ASSERT_TRUE(Write(*b.layer, at, ConstBytes(&other, 1)));
    first = std::min(first, at);
    EXPECT_EQ(*Compare(*a.layer, *b.layer, Threads(1 + i % 4)), first);
    EXPECT_EQ(*Compare(*b.layer, *a.layer, Threads(1 + i % 4)), first);
  }
}

TEST(Compare, PastTheShorterEndZerosAreEqual) {
  Toy a(Sized(kMiB)), b(Sized(2 * kMiB));
  ASSERT_TRUE(Write(*b.layer, kMiB + 100, std::vector<std::byte>(50)));
  EXPECT_EQ(*Compare(*a.layer, *b.layer, {}), std::nullopt);
  ASSERT_TRUE(Write(*b.layer, kMiB + 7777, Noise(1, 1)));
  EXPECT_EQ(*Compare(*a.layer, *b.layer, {}), kMiB + 7777);
  EXPECT_EQ(*Compare(*b.layer, *a.layer, {}), kMiB + 7777);
}

// A store that cannot be read from some byte on.
struct BadTail : WrapperStore {
  BadTail(Store& base, uint64_t good) : WrapperStore(base), good_(good) {}
  Result<> Read(uint64_t at, std::span<const iovec> into) override {
    if (at + IovLength(into) > good_) return Fail(Code::kIo, "injected");
    return base_.Read(at, into);
  }
  const uint64_t good_;
};

// Which job fails first depends on who is faster; what is told does not.
TEST(Compare, WhatCannotBeReadMattersBeforeADifferenceOnly) {
  constexpr uint64_t kSize = 8 * kMiB;
  const auto bytes = Noise(kSize, 3);
  MemoryStore a{ConstBytes(bytes)}, early{ConstBytes(bytes)}, late{ConstBytes(bytes)};
  const std::byte other{0};
  ASSERT_TRUE(early.Write(200'000, ConstBytes(&other, 1)));
  ASSERT_TRUE(late.Write(7 * kMiB, ConstBytes(&other, 1)));
  BadTail bad_early(early, 256 * kKiB), bad_late(late, 256 * kKiB);
  FlatLayer good(a), with_early(bad_early), with_late(bad_late);
  for (int i = 0; i < 200; ++i) {
    auto found = Compare(good, with_early, Threads(8));
    ASSERT_TRUE(found) << found.error().text();
    ASSERT_EQ(*found, 200'000u);
    ASSERT_FALSE(Compare(good, with_late, Threads(8)));
  }
}

}  // namespace
}  // namespace platter
