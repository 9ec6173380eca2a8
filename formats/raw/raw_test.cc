#include "formats/raw/raw.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "io/file_store.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"

namespace platter {
namespace {

using testing::HasSubstr;
using namespace std::string_view_literals;

// A store that claims other abilities than it has.
class Claiming final : public WrapperStore {
 public:
  Claiming(Store& store, std::optional<Caps> caps) : WrapperStore(store), caps_(caps) {}
  Caps caps() const override { return caps_ ? *caps_ : base_.caps(); }

 private:
  const std::optional<Caps> caps_;
};

Result<std::unique_ptr<Layer>> OpenOn(Store& store, OpenOptions options = {.writable = true},
                                      std::optional<Store::Caps> caps = {}) {
  return kRawFormat.open(std::make_unique<Claiming>(store, caps), options);
}

OpenOptions With(std::map<std::string, std::string> options) {
  return {.writable = true, .options = std::move(options)};
}

// As the engine writes: to each extent of the target, then Publish.
Result<> WriteReserved(Layer& layer, uint64_t at, std::string_view bytes) {
  while (!bytes.empty()) {
    auto reservation = TRY(layer.Reserve({at, bytes.size()}));
    EXPECT_TRUE(reservation->fill().empty());
    EXPECT_EQ(reservation->range().offset, at);
    for (const Extent& extent : reservation->target()) {
      EXPECT_EQ(extent.guest.offset, at);
      TRY(extent.store->Write(extent.host.offset, AsBytes(bytes.substr(0, extent.host.length))));
      bytes.remove_prefix(extent.host.length);
      at += extent.guest.length;
    }
    TRY(reservation->Publish());
  }
  return {};
}

std::string TextAt(Store& store, uint64_t at, size_t length) {
  std::string text(length, '?');
  EXPECT_TRUE(store.Read(at, std::as_writable_bytes(std::span(text))).has_value());
  return text;
}

std::string MapText(Layer& layer, Range want) {
  std::array<Extent, 8> extents;
  auto count = layer.Map(want, extents);
  if (!count) return count.error().text();
  std::string text;
  for (const Extent& e : std::span(extents).first(*count)) {
    text += fmt::format("{}{}+{}@{} ", e.kind == Kind::kData ? "data" : "hole",
                        e.writable ? "*" : "", e.guest.length, e.guest.offset);
    EXPECT_EQ(e.kind == Kind::kData, e.store != nullptr);
    EXPECT_EQ(e.host.length, e.store ? e.guest.length : 0);
  }
  return text;
}

constexpr uint64_t kChunk = 64 * kKiB;  // MemoryStore's unit of allocation

TEST(Raw, MapsDataAndHoles) {
  MemoryStore store(4 * kChunk);
  ASSERT_TRUE(store.Write(kChunk, AsBytes("x"sv)).has_value());
  auto layer = *OpenOn(store);
  EXPECT_EQ(layer->info().format, "raw");
  EXPECT_EQ(layer->info().size, 4 * kChunk);
  EXPECT_EQ(MapText(*layer, {0, 4 * kChunk}), "hole+65536@0 data*+65536@65536 hole+131072@131072 ");
  EXPECT_EQ(MapText(*layer, {100, 10}), "hole+10@100 ");
  EXPECT_EQ(MapText(*layer, {kChunk + 1, kChunk}), "data*+65535@65537 hole+1@131072 ");
}

TEST(Raw, MapRefusesWhatIsOutside) {
  MemoryStore store(100);
  auto layer = *OpenOn(store);
  std::array<Extent, 1> extent;
  for (Range range : {Range{0, 0}, Range{0, 101}, Range{100, 1}, Range{UINT64_MAX, 2}}) {
    auto mapped = layer->Map(range, extent);
    ASSERT_FALSE(mapped.has_value());
    EXPECT_EQ(mapped.error().code(), Code::kOutOfRange);
    EXPECT_EQ(layer->TryMap(range, extent), 0u);
    EXPECT_FALSE(layer->Reserve(range).has_value());
    EXPECT_FALSE(layer->Discard(range, Kind::kZero).has_value());
  }
}

TEST(Raw, TryMapAnswersWithoutAsking) {
  MemoryStore store(4 * kChunk);
  auto layer = *OpenOn(store);
  std::array<Extent, 4> extents;
  ASSERT_EQ(layer->TryMap({10, 3 * kChunk}, extents), 1u);
  EXPECT_EQ(extents[0].kind, Kind::kData);
  EXPECT_EQ(extents[0].guest, (Range{10, 3 * kChunk}));
  EXPECT_TRUE(extents[0].writable);
}

TEST(Raw, SizesAreExact) {
  MemoryStore store(70);
  auto layer = *OpenOn(store);
  EXPECT_EQ(layer->info().size, 70u);
  ASSERT_TRUE(WriteReserved(*layer, 60, "0123456789").has_value());
  EXPECT_EQ(TextAt(store, 60, 10), "0123456789");
  EXPECT_EQ(*store.Size(), 70u);
}

TEST(Raw, WritesIntoHolesInPlace) {
  MemoryStore store(4 * kChunk);
  auto layer = *OpenOn(store);
  ASSERT_TRUE(WriteReserved(*layer, kChunk - 2, "abcd").has_value());
  EXPECT_EQ(TextAt(store, kChunk - 2, 4), "abcd");
  // Two reservations of one place do not wait for one another: neither copies anything up.
  auto first = layer->Reserve({0, 512});
  auto second = layer->Reserve({0, 512});
  EXPECT_TRUE(first.has_value() && second.has_value());
}

TEST(Raw, ReadOnly) {
  MemoryStore store(kChunk);
  ASSERT_TRUE(store.Write(0, AsBytes("x"sv)).has_value());
  auto layer = *OpenOn(store, {});
  EXPECT_FALSE(layer->info().writable);
  EXPECT_EQ(MapText(*layer, {0, 10}), "data+10@0 ");
  EXPECT_EQ(layer->Reserve({0, 1}).error().code(), Code::kReadOnly);
  EXPECT_EQ(layer->Discard({0, 1}, Kind::kZero).error().code(), Code::kReadOnly);
  EXPECT_EQ(layer->resizer(), nullptr);
}

TEST(Raw, DiscardZeroesExactly) {
  MemoryStore store(AsBytes("0123456789"sv));
  auto layer = *OpenOn(store);
  EXPECT_EQ(*layer->Discard({2, 3}, Kind::kZero), (Range{2, 3}));
  EXPECT_EQ(TextAt(store, 0, 10), "01\0\0\00056789"sv);
  EXPECT_EQ(*layer->Discard({9, 1}, Kind::kHole), (Range{9, 1}));
  EXPECT_EQ(TextAt(store, 8, 2), "8\0"sv);
}

TEST(Raw, DiscardLeavesWhatCannotBePunched) {
  MemoryStore store(AsBytes("0123456789"sv));
  auto layer = *OpenOn(store, {.writable = true}, Store::Caps{.punch = false});
  EXPECT_TRUE(layer->Discard({0, 5}, Kind::kHole)->empty());
  EXPECT_EQ(TextAt(store, 0, 10), "0123456789");
  EXPECT_EQ(*layer->Discard({0, 5}, Kind::kZero), (Range{0, 5}));
  EXPECT_EQ(TextAt(store, 0, 6), "\0\0\0\0\0005"sv);
}

TEST(Raw, Window) {
  MemoryStore store(4 * kChunk);
  auto layer = *OpenOn(store, With({{"offset", "64k"}, {"size", "1000"}}));
  EXPECT_EQ(layer->info().size, 1000u);
  EXPECT_EQ(layer->resizer(), nullptr) << "what follows the window is not ours";
  ASSERT_TRUE(WriteReserved(*layer, 998, "ab").has_value());
  EXPECT_EQ(TextAt(store, kChunk + 998, 3), "ab\0"sv);
  EXPECT_EQ((*OpenOn(store, With({{"offset", "64k"}})))->info().size, 3 * kChunk);
  EXPECT_EQ((*OpenOn(store, With({{"offset", "256k"}})))->info().size, 0u);
}

TEST(Raw, WindowOutsideIsRefused) {
  MemoryStore store(1000);
  for (auto options : {With({{"offset", "1001"}}), With({{"size", "1001"}}),
                       With({{"offset", "1"}, {"size", "1000"}}), With({{"sector", "520"}}),
                       With({{"ofset", "1"}}), With({{"offset", "-1"}})}) {
    EXPECT_FALSE(OpenOn(store, options).has_value());
  }
}

TEST(Raw, Sectors) {
  MemoryStore store(8192);
  EXPECT_EQ((*OpenOn(store))->info().sector, 512u);
  EXPECT_EQ((*OpenOn(store, With({{"sector", "4096"}})))->info().sector, 4096u);
  EXPECT_EQ((*OpenOn(store, {.writable = true}, Store::Caps{.block_device = true}))->resizer(),
            nullptr);
}

TEST(Raw, Resize) {
  MemoryStore store(AsBytes("0123456789"sv));
  auto layer = *OpenOn(store);
  ASSERT_NE(layer->resizer(), nullptr);
  ASSERT_TRUE(layer->resizer()->Resize(5, Preallocation::kOff).has_value());
  EXPECT_EQ(layer->info().size, 5u);
  ASSERT_TRUE(layer->resizer()->Resize(3 * kMiB + 1, Preallocation::kFull).has_value());
  EXPECT_EQ(*store.Size(), 3 * kMiB + 1);
  EXPECT_EQ(TextAt(store, 0, 7), "01234\0\0"sv);
  EXPECT_EQ(MapText(*layer, {0, 3 * kMiB + 1}), fmt::format("data*+{}@0 ", 3 * kMiB + 1));
}

TEST(Raw, Create) {
  MemoryStore store(AsBytes("old content"sv));
  ASSERT_TRUE(kRawFormat.create(store, {.size = 100}).has_value());
  EXPECT_EQ(*store.Size(), 100u);
  EXPECT_EQ(TextAt(store, 0, 11), std::string(11, '\0'));

  CreateOptions full{.size = 3 * kMiB + 5, .options = {{"preallocation", "full"}}};
  ASSERT_TRUE(kRawFormat.create(store, full).has_value());
  EXPECT_EQ(*store.Size(), 3 * kMiB + 5);
  EXPECT_TRUE(store.FindRun(0)->data);
  EXPECT_EQ(store.FindRun(0)->length, 3 * kMiB + 5);
}

TEST(Raw, CreateRefuses) {
  MemoryStore store;
  CreateOptions parent{.size = 100, .parent = Reference{Reference::kParent, "base", "raw"}};
  EXPECT_EQ(kRawFormat.create(store, parent).error().code(), Code::kUnsupported);
  CreateOptions metadata{.size = 100, .options = {{"preallocation", "metadata"}}};
  EXPECT_EQ(kRawFormat.create(store, metadata).error().code(), Code::kUnsupported);
  CreateOptions unknown{.size = 100, .options = {{"cluster_size", "64k"}}};
  EXPECT_EQ(kRawFormat.create(store, unknown).error().code(), Code::kUnsupported);
  EXPECT_EQ(kRawFormat.create(store, {.size = uint64_t{1} << 63}).error().code(),
            Code::kOutOfRange);
}

TEST(Raw, CreateOnADeviceKeepsItsBytes) {
  MemoryStore device(AsBytes("0123456789"sv), {.fixed_size = true});
  Claiming store(device, Store::Caps{.block_device = true});
  EXPECT_TRUE(kRawFormat.create(store, {.size = 10}).has_value());
  EXPECT_EQ(TextAt(device, 0, 10), "0123456789");
  EXPECT_EQ(kRawFormat.create(store, {.size = 11}).error().code(), Code::kNoSpace);
}

TEST(Raw, FallocAllocatesAFile) {
  std::string path = testing::TempDir() + "/raw_falloc";
  ::unlink(path.c_str());
  auto store = FileStore::Create(path);
  ASSERT_TRUE(store.has_value()) << store.error().text();
  CreateOptions falloc{.size = kMiB, .options = {{"preallocation", "falloc"}}};
  ASSERT_TRUE(kRawFormat.create(**store, falloc).has_value());
  struct stat status;
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(static_cast<uint64_t>(status.st_size), kMiB);
  EXPECT_GE(static_cast<uint64_t>(status.st_blocks) * 512, kMiB);
  ::unlink(path.c_str());
}

TEST(Raw, Measure) {
  auto size = kRawFormat.measure({.size = 12345}, 100, {});
  ASSERT_TRUE(size.has_value());
  EXPECT_EQ(size->required, 12345u);
  EXPECT_EQ(size->fully_allocated, 12345u);
  EXPECT_EQ(kRawFormat.check, nullptr);
}

// What was guessed to be raw stays what it is.
class Guessed : public testing::Test {
 protected:
  Guessed() : store_(kChunk) { Open(); }
  void Open() { layer_ = *OpenOn(store_, {.writable = true, .guessed = true}); }
  bool Write(uint64_t at, std::string_view bytes) {
    Result<> written = WriteReserved(*layer_, at, bytes);
    if (!written) error_ = written.error().text();
    return written.has_value();
  }

  MemoryStore store_;
  std::unique_ptr<Layer> layer_;
  std::string error_;
};

TEST_F(Guessed, RefusesAHeader) {
  EXPECT_FALSE(Write(0, "QFI\xfb\0\0\0\3"sv));
  EXPECT_THAT(error_, HasSubstr("would make this image look like qcow2"));
  EXPECT_THAT(error_, HasSubstr("-f raw"));
  EXPECT_EQ(TextAt(store_, 0, 4), "\0\0\0\0"sv);
  EXPECT_FALSE(Write(64, "\x7f\x10\xda\xbe"));
  EXPECT_TRUE(Write(1, "QFI\xfb\0\0\0\3"sv)) << "not where a header stands";
}

TEST_F(Guessed, RefusesTheLastByteOfAHeader) {
  EXPECT_TRUE(Write(0, "KDM"));
  EXPECT_TRUE(Write(4, "more"));
  EXPECT_FALSE(Write(3, "V"));
  EXPECT_TRUE(Write(3, "W"));
}

TEST_F(Guessed, RefusesZeroesThatComplete) {
  EXPECT_TRUE(Write(0, "QEDx"));
  EXPECT_FALSE(layer_->Discard({3, 1}, Kind::kZero).has_value());
  EXPECT_EQ(TextAt(store_, 0, 4), "QEDx");
  EXPECT_TRUE(layer_->Discard({0, kChunk}, Kind::kZero).has_value());
}

TEST_F(Guessed, RefusesATrailer) {
  EXPECT_FALSE(Write(kChunk - 512, "conectix"));
  EXPECT_TRUE(Write(kChunk - 1024, "conectix"));
  std::string all(kChunk, 'x');
  all.replace(kChunk - 512, 4, "koly");
  EXPECT_FALSE(Write(0, all)) << "a write of the whole disk";
}

TEST_F(Guessed, RefusesASizeThatMakesATrailer) {
  ASSERT_TRUE(Write(kChunk - 2048, "conectix"));
  auto resized = layer_->resizer()->Resize(kChunk - 2048 + 512, Preallocation::kOff);
  ASSERT_FALSE(resized.has_value());
  EXPECT_THAT(resized.error().text(), HasSubstr("would look like VHD"));
  EXPECT_EQ(*store_.Size(), kChunk);
  for (uint64_t size : {kChunk - 1024, kChunk + 512, 3 * kChunk, uint64_t{0}}) {
    EXPECT_TRUE(layer_->resizer()->Resize(size, Preallocation::kOff).has_value()) << size;
  }
}

TEST_F(Guessed, MapsNothingPastTheGuard) {
  ASSERT_TRUE(Write(0, std::string(kChunk, 'x')));
  EXPECT_EQ(MapText(*layer_, {0, kChunk}), "data*+4096@0 data*+60928@4096 data*+512@65024 ");
  std::array<Extent, 8> extents;
  ASSERT_EQ(*layer_->Map({0, kChunk}, extents), 3u);
  EXPECT_EQ(extents[0].store, extents[2].store);
  EXPECT_NE(extents[0].store, extents[1].store);
  EXPECT_EQ(extents[0].store->fd(), -1);
}

TEST_F(Guessed, TinyImages) {
  for (uint64_t size : {0, 1, 511, 512, 600, 4096, 4097, 4608}) {
    ASSERT_TRUE(store_.Resize(size).has_value());
    Open();
    if (size == 0) continue;
    EXPECT_TRUE(Write(0, std::string(size, 'x'))) << size;
    EXPECT_EQ(TextAt(store_, 0, size), std::string(size, 'x'));
    EXPECT_EQ(Write(0, std::string("KDMV").substr(0, size)), size < 4) << size;
  }
}

TEST(Raw, NamedRawMayBecomeAnything) {
  MemoryStore store(kChunk);
  auto layer = *OpenOn(store);
  EXPECT_TRUE(WriteReserved(*layer, 0, "KDMV").has_value());
}

}  // namespace
}  // namespace platter
