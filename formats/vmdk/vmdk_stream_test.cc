// Stream-optimized images: written in order, with markers that a reader who cannot seek finds.
#include "formats/vmdk/vmdk_stream.h"

#include <gtest/gtest.h>

#include "base/endian.h"
#include "formats/vmdk/vmdk_testing.h"
#include "io/codec/codec.h"
#include "io/engine/engine.h"

namespace platter::vmdk {
namespace {

constexpr uint64_t kGrain = 64 * kKiB;
const Options kStream = {{"subformat", "streamOptimized"}};

class VmdkStreamTest : public testing::Test {
 protected:
  // A stream of `content`, made as convert makes it.
  void Stream(const std::vector<std::byte>& content) {
    ASSERT_TRUE(image_.Create(content.size(), kStream));
    auto layer = image_.Open(true, /*fresh=*/true);
    ASSERT_TRUE(layer) << layer.error().text();
    TestImage source;
    ASSERT_TRUE(source.Create(content.size(), {}));
    auto from = source.Open(true);
    ASSERT_TRUE(Write(**from, 0, content));
    auto copied = Copy(**from, **layer, {0, content.size()}, {.target_is_zero = true});
    ASSERT_TRUE(copied) << copied.error().text();
    ASSERT_TRUE((*layer)->Flush());
    EXPECT_EQ(*Content(**layer), content) << "before it is closed";
  }

  TestImage image_;
};

// Noise, zeros and text, and a ragged end.
std::vector<std::byte> Mixed() {
  std::vector<std::byte> bytes(40 * kGrain + 3 * kSector);
  std::ranges::copy(Noise(5 * kGrain + 100, 1), bytes.begin());
  std::fill_n(bytes.begin() + 20 * kGrain, 3 * kGrain, std::byte{'x'});
  std::ranges::copy(Noise(2 * kSector, 2), bytes.begin() + 40 * kGrain);
  return bytes;
}

TEST_F(VmdkStreamTest, ReadsAsWhatWasCopied) {
  Stream(Mixed());
  auto layer = image_.Open(false);
  ASSERT_TRUE(layer) << layer.error().text();
  EXPECT_EQ(*Content(**layer), Mixed());
  auto report = image_.Check();
  ASSERT_TRUE(report);
  EXPECT_EQ(report->corruptions + report->leaks + report->errors, 0u) << Findings(*report);
  EXPECT_EQ(report->compressed_units, 10u);
}

TEST_F(VmdkStreamTest, AReaderWhoCannotSeekFindsAll) {
  const std::vector<std::byte> content = Mixed();
  Stream(content);
  std::vector<std::byte> file = image_.store.Contents(), got(content.size());
  auto header = *LoadAt<SparseHeader>(file, 0);
  EXPECT_EQ(header.version, 3u);
  EXPECT_EQ(header.flags, 0x30001u);
  EXPECT_EQ(header.gd_offset, kAtEnd);
  EXPECT_EQ(header.overhead, 128u);
  std::vector<uint32_t> markers;
  uint64_t at = header.overhead * kSector;
  while (true) {
    auto grain = LoadAt<GrainMarker>(file, at);
    ASSERT_TRUE(grain) << "no end of the stream";
    if (grain->size != 0) {
      std::vector<std::byte> unit(kGrain);
      auto used = Decompress(Codec::kZlib, ConstBytes(file).subspan(at + 12, grain->size), unit);
      ASSERT_TRUE(used) << used.error().text();
      uint64_t to = grain->sector * kSector;
      std::copy_n(unit.begin(), std::min(kGrain, content.size() - to), got.begin() + to);
      at = RoundUp(at + 12 + grain->size, kSector);
      continue;
    }
    auto marker = *LoadAt<MetadataMarker>(file, at);
    markers.push_back(marker.type);
    at += kSector + marker.sectors * kSector;
    if (marker.type == kMarkerEnd) break;
  }
  EXPECT_EQ(at, file.size());
  EXPECT_EQ(markers,
            (std::vector<uint32_t>{kMarkerTable, kMarkerDirectory, kMarkerFooter, kMarkerEnd}));
  EXPECT_EQ(got, content);
}

TEST_F(VmdkStreamTest, AnEmptyStreamIsWhole) {
  ASSERT_TRUE(image_.Create(100 * kGrain, kStream));
  auto layer = image_.Open(false);
  ASSERT_TRUE(layer) << layer.error().text();
  EXPECT_TRUE(IsZero(*Content(**layer)));
}

TEST_F(VmdkStreamTest, ItCannotBeChangedAfterwards) {
  Stream(Mixed());
  std::vector<std::byte> before = image_.store.Contents();
  auto layer = image_.Open(true);
  ASSERT_TRUE(layer) << layer.error().text();
  auto written = Write(**layer, 10 * kGrain, Noise(100, 1));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code(), Code::kUnsupported);
  EXPECT_NE(written.error().text().find("only while it is made"), std::string::npos)
      << written.error().text();
  EXPECT_FALSE((*layer)->Discard({0, kGrain}, Kind::kZero));
  layer->reset();
  EXPECT_EQ(image_.store.Contents(), before);
}

TEST_F(VmdkStreamTest, PlainWritesAreRefusedWhileItIsMade) {
  ASSERT_TRUE(image_.Create(4 * kGrain, kStream));
  auto layer = image_.Open(true, true);
  ASSERT_TRUE(layer);
  auto written = Write(**layer, 0, Noise(100, 1));
  ASSERT_FALSE(written);
  EXPECT_NE(written.error().text().find("compressed grains only"), std::string::npos);
}

TEST_F(VmdkStreamTest, DamageToAGrainIsFound) {
  Stream(Mixed());
  SparseGeometry g;
  std::vector<std::byte> file = image_.store.Contents();
  // In the middle of the first grain's stream; noise is stored, so only the checksum can tell.
  uint64_t at = 128 * kSector + sizeof(GrainMarker) + 30000;
  file[at] ^= std::byte{1};
  ASSERT_TRUE(image_.store.Write(at, ConstBytes(file).subspan(at, 1)));
  auto layer = image_.Open(false);
  std::vector<std::byte> bytes(512);
  auto read = Read(**layer, 0, Bytes(bytes));
  ASSERT_FALSE(read) << "even where the bytes asked for are not the damaged ones";
  EXPECT_EQ(read.error().code(), Code::kCorrupt);
  EXPECT_TRUE(Read(**layer, kGrain, Bytes(bytes)));
}

TEST_F(VmdkStreamTest, MarkersThatLieAreFound) {
  Stream(Mixed());
  ASSERT_TRUE(image_.store.Write(128 * kSector, AsBytes(le64(999))));
  auto layer = image_.Open(false);
  std::vector<std::byte> bytes(512);
  auto read = Read(**layer, 0, Bytes(bytes));
  ASSERT_FALSE(read);
  EXPECT_NE(read.error().text().find("grain of sector 0x3e7"), std::string::npos)
      << read.error().text();
  auto report = image_.Check();
  ASSERT_TRUE(report);
  EXPECT_EQ(report->corruptions, 1u) << Findings(*report);
}

TEST_F(VmdkStreamTest, ADroppedGrainMakesAGapThatIsTold) {
  ASSERT_TRUE(image_.Create(8 * kGrain, kStream));
  auto layer = image_.Open(true, true);
  ASSERT_TRUE(layer);
  const uint32_t size = 100;
  {
    auto last = (*layer)->ReservePacked({0, kGrain}, std::span(&size, 1));
    ASSERT_TRUE(last);
  }
  EXPECT_TRUE((*layer)->Flush()) << "the last one is taken back";
  auto first = (*layer)->ReservePacked({0, kGrain}, std::span(&size, 1));
  auto second = (*layer)->ReservePacked({kGrain, kGrain}, std::span(&size, 1));
  ASSERT_TRUE(first && second);
  first->reset();
  EXPECT_FALSE((*layer)->Flush());
}

}  // namespace
}  // namespace platter::vmdk
