// Partition tables, as they should be and as they should not. parted's are in
// tests/interop/nbd_serve_test.
#include "cow/partitions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include "base/bytes.h"
#include "base/endian.h"
#include "cow/disk.h"
#include "io/memory_store.h"

namespace platter {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint64_t kSectors = 20'000, kSector = 512;

class PartitionsTest : public testing::Test {
 protected:
  PartitionsTest() : disk_(kSectors * kSector) {}

  // An entry of the boot record in `record`: LBAs as they are written there.
  void Entry(uint32_t record, int index, uint8_t type, uint32_t first, uint32_t count,
             uint8_t boot = 0) {
    const size_t at = record * kSector + 446 + static_cast<size_t>(index) * 16;
    disk_[at] = std::byte{boot};
    disk_[at + 4] = std::byte{type};
    StoreAt(Bytes(disk_), at + 8, le32(first));
    StoreAt(Bytes(disk_), at + 12, le32(count));
    disk_[record * kSector + 510] = std::byte{0x55};
    disk_[record * kSector + 511] = std::byte{0xaa};
  }

  // A GPT header in sector `at` and its table (one entry: sectors 100 to 199) two sectors on.
  void Gpt(uint64_t at, uint32_t count = 4, uint64_t last = 199) {
    Bytes table = Bytes(disk_).subspan((at + 2) * kSector, 4 * 128);
    std::ranges::fill(table.first(16), std::byte{0xab});
    StoreAt(table, 32, le64(100));
    StoreAt(table, 40, le64(last));
    table[56] = std::byte{'x'};
    Bytes header = Bytes(disk_).subspan(at * kSector, 92);
    std::ranges::copy(AsBytes(std::string_view("EFI PART")), header.begin());
    StoreAt(header, 12, le32(92));
    StoreAt(header, 16, le32(0));
    StoreAt(header, 72, le64(at + 2));
    StoreAt(header, 80, le32(count));
    StoreAt(header, 84, le32(128));
    StoreAt(header, 88, le32(Crc(table)));
    StoreAt(header, 16, le32(Crc(header)));
  }

  static uint32_t Crc(ConstBytes bytes) {
    return static_cast<uint32_t>(
        crc32(0, reinterpret_cast<const Bytef*>(bytes.data()), static_cast<uInt>(bytes.size())));
  }

  // "number:first sector+sectors" of each.
  std::vector<std::string> Read() {
    std::vector<std::unique_ptr<Layer>> layers;
    const Format* raw = *FindFormat("raw");
    layers.push_back(*raw->open(std::make_unique<MemoryStore>(ConstBytes(disk_)), {}));
    auto disk = Disk::FromLayers(std::move(layers));
    auto partitions = ReadPartitions(*disk);
    EXPECT_TRUE(partitions.has_value());
    std::vector<std::string> found;
    for (const Partition& each : *partitions) {
      found.push_back(std::to_string(each.number) + ":" +
                      std::to_string(each.range.offset / kSector) + "+" +
                      std::to_string(each.range.length / kSector));
    }
    return found;
  }

  std::vector<std::byte> disk_;
};

TEST_F(PartitionsTest, NoTableNoPartitions) {
  EXPECT_THAT(Read(), IsEmpty());
  disk_.resize(100);
  EXPECT_THAT(Read(), IsEmpty());
}

TEST_F(PartitionsTest, PrimaryAndLogical) {
  Entry(0, 0, 0x83, 100, 200);
  Entry(0, 2, 0x0f, 1000, 5000);
  Entry(1000, 0, 0x83, 63, 500);
  Entry(1000, 1, 0x05, 1000, 1000);
  Entry(2000, 0, 0x82, 63, 600);
  EXPECT_THAT(Read(), ElementsAre("1:100+200", "5:1063+500", "6:2063+600"));
}

TEST_F(PartitionsTest, WhatIsNotOnTheDiskIsLeftOut) {
  Entry(0, 0, 0x83, 100, kSectors);
  Entry(0, 1, 0x83, 0xffffffff, 0xffffffff);
  Entry(0, 2, 0x83, 300, 0);
  Entry(0, 3, 0x83, 400, 10);
  EXPECT_THAT(Read(), ElementsAre("4:400+10"));
}

TEST_F(PartitionsTest, AChainInACircleEnds) {
  Entry(0, 0, 0x05, 1000, 5000);
  Entry(1000, 0, 0x83, 63, 10);
  Entry(1000, 1, 0x05, 500, 100);
  Entry(1500, 0, 0x83, 63, 10);
  Entry(1500, 1, 0x05, 500, 100);
  EXPECT_LE(Read().size(), 128u);
}

TEST_F(PartitionsTest, ABootSectorIsNoTable) {
  Entry(0, 0, 0x83, 100, 200, /*boot=*/0x6f);
  EXPECT_THAT(Read(), IsEmpty());
}

TEST_F(PartitionsTest, Gpt) {
  Entry(0, 0, 0xee, 1, kSectors - 1);
  Gpt(1);
  EXPECT_THAT(Read(), ElementsAre("1:100+100"));
}

TEST_F(PartitionsTest, AGptThatIsDamagedHasAnotherAtTheEnd) {
  Entry(0, 0, 0xee, 1, kSectors - 1);
  Gpt(1);
  disk_[kSector + 80] ^= std::byte{1};
  EXPECT_THAT(Read(), IsEmpty());
  // The table of this test's header is after it; the last sectors have no room for that.
  const uint64_t last = kSectors - 1;
  Gpt(last - 10);
  std::copy_n(disk_.begin() + static_cast<long>((last - 10) * kSector), 92,
              disk_.begin() + static_cast<long>(last * kSector));
  EXPECT_THAT(Read(), ElementsAre("1:100+100"));
}

TEST_F(PartitionsTest, AGptOfAbsurdSizeIsNone) {
  Entry(0, 0, 0xee, 1, kSectors - 1);
  Gpt(1, /*count=*/0xffffffff);
  EXPECT_THAT(Read(), IsEmpty());
  Gpt(1, 4, /*last=*/~uint64_t{0});
  EXPECT_THAT(Read(), IsEmpty());
}

}  // namespace
}  // namespace platter
