#include "formats/qcow2/qcow2_info.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace platter::qcow2 {
namespace {

template <class T>
T Get(const Info& info, std::string_view name) {
  auto found = std::ranges::find(info.facts, name, &Fact::name);
  EXPECT_NE(found, info.facts.end()) << name;
  if (found == info.facts.end()) return T();
  EXPECT_TRUE(std::holds_alternative<T>(found->value)) << name;
  return std::get<T>(found->value);
}

bool Has(const Info& info, std::string_view name) {
  return std::ranges::find(info.facts, name, &Fact::name) != info.facts.end();
}

TEST(Qcow2Info, Version3) {
  Header header;
  header.size = 12345;
  header.incompatible = kDirty | kCorrupt | kCompressionBit | kExtendedL2;
  header.compatible = kLazyRefcounts;
  header.compression = kCompressionZstd;
  header.refcount_order = 3;
  Info info = MakeInfo(header, {}, {}).value();
  EXPECT_EQ(info.format, "qcow2");
  EXPECT_EQ(info.size, 12345u);
  EXPECT_EQ(info.unit, 65536u);
  EXPECT_TRUE(info.dirty);
  EXPECT_TRUE(info.corrupt);
  EXPECT_FALSE(info.encrypted);
  EXPECT_TRUE(info.compressed_units);
  EXPECT_EQ(info.compression, "zstd");
  EXPECT_EQ(Get<std::string>(info, "compat"), "1.1");
  EXPECT_EQ(Get<std::string>(info, "compression-type"), "zstd");
  EXPECT_TRUE(Get<bool>(info, "lazy-refcounts"));
  EXPECT_EQ(Get<uint64_t>(info, "refcount-bits"), 8u);
  EXPECT_TRUE(Get<bool>(info, "corrupt"));
  EXPECT_TRUE(Get<bool>(info, "extended-l2"));
  EXPECT_FALSE(Has(info, "encrypt"));
  EXPECT_FALSE(Has(info, "data-file"));
}

TEST(Qcow2Info, Version2SaysOnlyWhatItHas) {
  Header header;
  header.version = 2;
  header.crypt_method = kCryptAes;
  Info info = MakeInfo(header, {}, {}).value();
  EXPECT_EQ(Get<std::string>(info, "compat"), "0.10");
  EXPECT_EQ(Get<std::string>(info, "compression-type"), "zlib");
  EXPECT_FALSE(Has(info, "lazy-refcounts"));
  EXPECT_FALSE(Has(info, "corrupt"));
  EXPECT_FALSE(Has(info, "extended-l2"));
  Facts encrypt = Get<Facts>(info, "encrypt");
  ASSERT_EQ(encrypt.size(), 1u);
  EXPECT_EQ(std::get<std::string>(encrypt[0].value), "aes");
  EXPECT_TRUE(info.encrypted);
  EXPECT_FALSE(info.compressed_units);
  EXPECT_EQ(info.compression, "");
}

TEST(Qcow2Info, References) {
  Header header;
  header.incompatible = kDataFile;
  header.autoclear = kDataFileRaw;
  header.data_file_name = "data.raw";
  Info info = MakeInfo(header, {}, {}).value();
  ASSERT_EQ(info.references.size(), 1u);
  EXPECT_EQ(info.references[0].role, Reference::kData);
  EXPECT_EQ(info.references[0].name, "data.raw");
  EXPECT_EQ(info.references[0].format, "raw");
  EXPECT_EQ(Get<std::string>(info, "data-file"), "data.raw");
  EXPECT_TRUE(Get<bool>(info, "data-file-raw"));
  EXPECT_FALSE(info.compressed_units);
  // The name alone does not make it one.
  header.incompatible = header.autoclear = 0;
  header.has_backing = true;
  header.backing_name = "base";
  header.backing_format = "vmdk";
  info = MakeInfo(header, {}, {}).value();
  ASSERT_EQ(info.references.size(), 1u);
  EXPECT_EQ(info.references[0].role, Reference::kParent);
  EXPECT_EQ(info.references[0].name, "base");
  EXPECT_EQ(info.references[0].format, "vmdk");
}

TEST(Qcow2Info, SnapshotsAndBitmaps) {
  std::vector<Snapshot> snapshots(2);
  snapshots[1].info.name = "second";
  std::vector<Bitmap> bitmaps(1);
  bitmaps[0].info.name = "b";
  Info info = MakeInfo(Header(), snapshots, bitmaps).value();
  ASSERT_EQ(info.snapshots.size(), 2u);
  EXPECT_EQ(info.snapshots[1].name, "second");
  ASSERT_EQ(info.bitmaps.size(), 1u);
  EXPECT_EQ(info.bitmaps[0].name, "b");
}

}  // namespace
}  // namespace platter::qcow2
