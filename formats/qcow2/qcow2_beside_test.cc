// Snapshots and bitmaps that are wrong do not keep anybody from reading the disk.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <vector>

#include "formats/qcow2/qcow2_disk.h"
#include "formats/qcow2/qcow2_layer.h"
#include "formats/qcow2/qcow2_testing.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"

namespace platter::qcow2 {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class Qcow2Beside : public testing::Test {
 protected:
  // Snapshots one and two, bitmaps a and b; the disk is full of 3.
  void SetUp() override {
    std::string path = testing::TempDir() + "beside.qcow2";
    Outcome made = Shell("set -e; f=" + path +
                         "; qemu-img create -q -f qcow2 $f 1M; qemu-io -c 'write -P 1 0 1M' $f; "
                         "qemu-img snapshot -c one $f; qemu-io -c 'write -P 2 0 1M' $f; "
                         "qemu-img snapshot -c two $f; qemu-io -c 'write -P 3 0 1M' $f; "
                         "qemu-img bitmap --add $f a; qemu-img bitmap --add $f b");
    ASSERT_EQ(made.exit_code, 0) << made.output;
    auto file = FileStore::Open(path, {});
    ASSERT_TRUE(file.has_value()) << file.error().text();
    std::vector<std::byte> bytes(*(*file)->Size());
    ASSERT_TRUE((*file)->Store::Read(0, Bytes(bytes)));
    image_ = std::make_unique<MemoryStore>(bytes);
    unlink(path.c_str());
    header_ = ParseHeader(bytes).value();
  }

  Result<std::unique_ptr<Layer>> Open(OpenOptions options = {}) {
    return OpenQcow2(std::make_unique<WrapperStore>(*image_), options);
  }
  void Poke(uint64_t at, uint64_t bytes, uint64_t value) {
    std::vector<std::byte> big(bytes);
    for (uint64_t i = bytes; i-- > 0; value >>= 8) big[i] = static_cast<std::byte>(value);
    ASSERT_TRUE(image_->Store::Write(at, ConstBytes(big)));
  }
  // Opens for reading; what is left of both lists, and the one problem that is told.
  void ExpectLeft(std::vector<std::string> snapshots, std::vector<std::string> bitmaps,
                  const std::string& problem) {
    for (bool info_only : {false, true}) {
      auto layer = Open({.info_only = info_only});
      ASSERT_TRUE(layer.has_value()) << layer.error().text();
      const Info& info = (*layer)->info();
      std::vector<std::string> names;
      for (const SnapshotInfo& snapshot : info.snapshots) names.push_back(snapshot.name);
      EXPECT_EQ(names, snapshots);
      names.clear();
      for (const BitmapInfo& bitmap : info.bitmaps) names.push_back(bitmap.name);
      EXPECT_EQ(names, bitmaps);
      EXPECT_THAT(info.problems, ElementsAre(HasSubstr(problem)));
      if (info_only) continue;
      std::vector<std::byte> got(kMiB);
      ASSERT_TRUE(Read(**layer, 0, Bytes(got)));
      EXPECT_EQ(got, std::vector<std::byte>(kMiB, std::byte{3}));
    }
    auto writer = Open({.writable = true});
    ASSERT_FALSE(writer.has_value());
    EXPECT_THAT(writer.error().text(), HasSubstr(problem));
  }

  std::unique_ptr<MemoryStore> image_;
  Header header_;
};

TEST_F(Qcow2Beside, NothingIsWrong) {
  auto layer = Open({.writable = true});
  ASSERT_TRUE(layer.has_value()) << layer.error().text();
  EXPECT_THAT((*layer)->info().problems, IsEmpty());
  EXPECT_EQ((*layer)->info().snapshots.size(), 2u);
  EXPECT_EQ((*layer)->info().bitmaps.size(), 2u);
}

TEST_F(Qcow2Beside, ASnapshotWhoseTableCannotBe) {
  Poke(header_.snapshots_offset + offsetof(DiskSnapshot, l1_table_offset), 8, 0x1234);
  ExpectLeft({"two"}, {"a", "b"}, "snapshot 0 ('one'): L1 table at 0x1234");
  // The other one can still be shown, and this one not.
  auto two = Open({.snapshot = "two"});
  ASSERT_TRUE(two.has_value()) << two.error().text();
  std::byte first{};
  ASSERT_TRUE(Read(**two, 0, Bytes(&first, 1)));
  EXPECT_EQ(first, std::byte{2});
  auto one = Open({.snapshot = "one"});
  ASSERT_FALSE(one.has_value());
  EXPECT_THAT(one.error().text(), HasSubstr("no snapshot 'one'"));
}

TEST_F(Qcow2Beside, ASnapshotTableThatEndsTooEarly) {
  Poke(header_.snapshots_offset + offsetof(DiskSnapshot, extra_size), 4, 0x7fffffff);
  ExpectLeft({}, {"a", "b"}, "snapshot table: ends inside entry 0");
}

TEST_F(Qcow2Beside, ASnapshotTablePastTheEnd) {
  Poke(offsetof(DiskHeader, snapshots_offset), 8, uint64_t{1} << 40);
  ExpectLeft({}, {"a", "b"}, "the snapshot table at 0x10000000000 lies past the end");
}

TEST_F(Qcow2Beside, ABitmapOfAnotherType) {
  Poke(header_.bitmaps->directory_offset + offsetof(DiskBitmapEntry, type), 1, 77);
  ExpectLeft({"one", "two"}, {"b"}, "bitmap 0 ('a'): type 77");
}

TEST_F(Qcow2Beside, ABitmapDirectoryThatEndsTooEarly) {
  Poke(header_.bitmaps->directory_offset + offsetof(DiskBitmapEntry, extra_length), 4, 0x7ffffff0);
  ExpectLeft({"one", "two"}, {}, "bitmap directory: ends inside entry 0");
}

}  // namespace
}  // namespace platter::qcow2
