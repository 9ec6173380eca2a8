// Images that we create, judged by qemu-img: no errors and no leaks for any combination of options.
#include "formats/qcow2/qcow2_create.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "formats/options.h"
#include "formats/qcow2/qcow2_parse.h"
#include "formats/qcow2/qcow2_plan.h"
#include "formats/qcow2/qcow2_testing.h"
#include "formats/testing/named_stores.h"
#include "io/memory_store.h"

namespace platter::qcow2 {
namespace {

namespace fs = std::filesystem;

using Qcow2Create = QemuTest;

Error CreateError(uint64_t size, std::map<std::string, std::string> options,
                  std::optional<Reference> parent = std::nullopt) {
  MemoryStore store;
  NamedStores files;
  CreateOptions create;
  create.size = size;
  create.options = std::move(options);
  create.parent = std::move(parent);
  create.files = &files;
  Result<> created = TakeCommonOptions(create);
  if (created) created = CreateQcow2(store, create);
  if (created.has_value()) return Error(Code::kIo, 0, "no error");
  return std::move(created.error());
}

std::string Text(uint64_t number) { return std::to_string(number); }

TEST_F(Qcow2Create, EveryGeometryIsClean) {
  for (uint32_t bits = 9; bits <= 21; ++bits) {
    for (uint32_t order = 0; order <= 6; ++order) {
      for (int form = 0; form < 3; ++form) {  // version 2, version 3, extended L2
        if ((form == 0 && order != 4) || (form == 2 && bits < 14)) continue;
        for (uint64_t size : {uint64_t{0}, uint64_t{512}, 3 * kMiB + 12345}) {
          std::map<std::string, std::string> options = {{"cluster_size", Text(1u << bits)},
                                                        {"refcount_bits", Text(1u << order)}};
          if (form == 0) options["compat"] = "0.10";
          if (form == 2) options["extended_l2"] = "on";
          ASSERT_NO_FATAL_FAILURE(Create("image", size, options));
          ExpectClean("image", fmt::format("cluster bits {} refcount order {} form {} size {}",
                                           bits, order, form, size));
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST_F(Qcow2Create, PreallocatedGeometriesAreClean) {
  for (uint32_t bits : {9, 10, 12, 14, 16, 21}) {
    for (uint32_t order : {0, 1, 3, 4, 6}) {
      for (bool extended : {false, true}) {
        if (extended && bits < 14) continue;
        // Small clusters with wide counts need several refcount table clusters.
        for (uint64_t size : {uint64_t{512}, 5 * kMiB + 512, bits == 9 ? 40 * kMiB : kGiB}) {
          ASSERT_NO_FATAL_FAILURE(Create("image", size,
                                         {{"cluster_size", Text(1u << bits)},
                                          {"refcount_bits", Text(1u << order)},
                                          {"extended_l2", extended ? "on" : "off"},
                                          {"preallocation", "metadata"}}));
          ExpectClean("image", fmt::format("cluster bits {} refcount order {} extended {} size {}",
                                           bits, order, extended, size));
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST_F(Qcow2Create, PreallocatedImagesAreAsLongAsMeasured) {
  for (const char* text :
       {"", ",cluster_size=512", ",cluster_size=2M", ",refcount_bits=64,cluster_size=4k",
        ",refcount_bits=1", ",extended_l2=on", ",compat=0.10"}) {
    for (uint64_t size : {uint64_t{0}, uint64_t{1000}, 7 * kMiB, 100 * kMiB + 512}) {
      ASSERT_NO_FATAL_FAILURE(
          Create("image", size, OptionsOf(std::string("preallocation=metadata") + text)));
      std::string qemu = Shell(fmt::format("qemu-img measure --output json -O qcow2 --size {} -o "
                                           "preallocation=metadata{}",
                                           size, text))
                             .output;
      std::string wanted = fmt::format("\"fully-allocated\": {}\n", fs::file_size(Path("image")));
      EXPECT_NE(qemu.find(wanted), std::string::npos) << text << " " << size << "\n"
                                                      << wanted << qemu;
    }
  }
}

TEST_F(Qcow2Create, HugeDisksCostNoMoreThanTheirTables) {
  for (uint32_t bits : {14, 16, 21}) {
    ASSERT_NO_FATAL_FAILURE(Create("image", 64 * kTiB, {{"cluster_size", Text(1u << bits)}}));
    ExpectClean("image", fmt::format("64 TiB, cluster bits {}", bits));
    struct stat info;
    ASSERT_EQ(stat(Path("image").c_str(), &info), 0);
    EXPECT_LT(static_cast<uint64_t>(info.st_blocks) * 512, 256 * kKiB) << bits;
  }
  ASSERT_NO_FATAL_FAILURE(Create("image", 128 * kGiB, {{"cluster_size", "512"}}));
  ExpectClean("image", "128 GiB, clusters of 512");
}

TEST_F(Qcow2Create, SizesAreRoundedUpToSectors) {
  ASSERT_NO_FATAL_FAILURE(Create("image", 1000, {}));
  EXPECT_NE(
      Shell("qemu-img info --output json " + Path("image")).output.find("\"virtual-size\": 1024"),
      std::string::npos);
  ASSERT_NO_FATAL_FAILURE(Create("image", 0, {{"size", "1.5k"}}));
  EXPECT_NE(
      Shell("qemu-img info --output json " + Path("image")).output.find("\"virtual-size\": 1536"),
      std::string::npos);
}

TEST_F(Qcow2Create, QemuSeesTheOptions) {
  ASSERT_NO_FATAL_FAILURE(Create("image", kMiB,
                                 {{"compression_type", "zstd"},
                                  {"lazy_refcounts", "on"},
                                  {"refcount_bits", "8"},
                                  {"extended_l2", "on"},
                                  {"cluster_size", "128k"}}));
  std::string info = Shell("qemu-img info --output json " + Path("image")).output;
  for (const char* part :
       {"\"compression-type\": \"zstd\"", "\"lazy-refcounts\": true", "\"refcount-bits\": 8",
        "\"extended-l2\": true", "\"cluster-size\": 131072", "\"compat\": \"1.1\""}) {
    EXPECT_NE(info.find(part), std::string::npos) << part << "\n" << info;
  }
  ASSERT_NO_FATAL_FAILURE(Create("image", kMiB, {{"compat", "v2"}}));
  info = Shell("qemu-img info --output json " + Path("image")).output;
  EXPECT_NE(info.find("\"compat\": \"0.10\""), std::string::npos) << info;
  ASSERT_NO_FATAL_FAILURE(
      Create("image", kMiB, {{"backing_file", "some base"}, {"backing_fmt", "raw"}}));
  info = Shell("qemu-img info --output json " + Path("image")).output;
  EXPECT_NE(info.find("\"backing-filename\": \"some base\""), std::string::npos) << info;
  EXPECT_NE(info.find("\"backing-filename-format\": \"raw\""), std::string::npos) << info;
}

TEST_F(Qcow2Create, QemuWritesIntoThem) {
  std::vector<std::map<std::string, std::string>> cases = {
      {},
      {{"cluster_size", "512"}, {"refcount_bits", "64"}},
      {{"extended_l2", "on"}, {"cluster_size", "2M"}},
      {{"compat", "0.10"}},
      {{"preallocation", "metadata"}, {"refcount_bits", "1"}},
      {{"preallocation", "metadata"}, {"extended_l2", "on"}},
      {{"preallocation", "falloc"}},
      {{"preallocation", "full"}},
      {{"lazy_refcounts", "on"}},
      {{"data_file", Path("data")}},
      {{"data_file", Path("data")}, {"data_file_raw", "on"}},
      {{"data_file", Path("data")}, {"preallocation", "full"}, {"extended_l2", "on"}},
  };
  for (const auto& options : cases) {
    ASSERT_NO_FATAL_FAILURE(Create("image", 8 * kMiB + 512, options));
    std::string what;
    for (const auto& [name, value] : options) what += name + "=" + value + " ";
    Outcome io = Shell(
        "qemu-io -f qcow2 -c 'read -P 0 0 8389120' -c 'write -P 7 1000k 3M' -c 'write -P 9 8388608 "
        "512' "
        "-c 'read -P 7 1000k 3M' -c 'read -P 0 0 1000k' " +
        Path("image"));
    EXPECT_EQ(io.exit_code, 0) << what << io.output;
    EXPECT_EQ(io.output.find("failed"), std::string::npos) << what << io.output;
    ExpectClean("image", what);
  }
}

TEST_F(Qcow2Create, RawDataFileIsTheDisk) {
  ASSERT_NO_FATAL_FAILURE(
      Create("image", kMiB, {{"data_file", Path("data")}, {"data_file_raw", "on"}}));
  EXPECT_EQ(fs::file_size(Path("data")), kMiB);
  ASSERT_EQ(Shell("qemu-io -f qcow2 -c 'write -P 7 300k 64k' " + Path("image")).exit_code, 0);
  Outcome compare = Shell("qemu-img compare -f qcow2 -F raw " + Path("image") + " " + Path("data"));
  EXPECT_EQ(compare.exit_code, 0) << compare.output;
}

TEST_F(Qcow2Create, FullIsReallyThere) {
  ASSERT_NO_FATAL_FAILURE(Create("image", 4 * kMiB, {{"preallocation", "full"}}));
  struct stat info;
  ASSERT_EQ(stat(Path("image").c_str(), &info), 0);
  EXPECT_GE(static_cast<uint64_t>(info.st_blocks) * 512, 4 * kMiB);
}

TEST_F(Qcow2Create, SubclustersOfAParentStayItsOwn) {
  ASSERT_EQ(Shell("qemu-img create -q -f raw " + Path("base") +
                  " 1M && qemu-io -f raw -c 'write -P 5 0 1M' " + Path("base"))
                .exit_code,
            0);
  ASSERT_NO_FATAL_FAILURE(Create("image", kMiB,
                                 {{"backing_file", Path("base")},
                                  {"backing_fmt", "raw"},
                                  {"extended_l2", "on"},
                                  {"preallocation", "metadata"}}));
  Outcome io = Shell("qemu-io -f qcow2 -c 'read -P 5 0 1M' " + Path("image"));
  EXPECT_EQ(io.output.find("failed"), std::string::npos) << io.output;
  ExpectClean("image", "prealloc over a parent");
}

TEST_F(Qcow2Create, OldContentsOfADeviceDoNotShow) {
  for (const char* compat : {"1.1", "0.10"}) {
    for (const char* preallocation : {"off", "metadata", "falloc", "full"}) {
      MemoryStore device(
          ConstBytes(std::vector<std::byte>(4 * kMiB, std::byte{0xee})),
          MemoryStore::Options{.name = "device", .writable = true, .fixed_size = true});
      if (!device.caps().block_device) GTEST_FAIL() << "a store of fixed size must say so";
      CreateOptions create;
      create.size = 2 * kMiB;
      create.options = {{"compat", compat}, {"preallocation", preallocation}};
      auto created = CreateQcow2(device, create);
      ASSERT_TRUE(created.has_value() || created.error().code() == Code::kUnsupported)
          << created.error().text();
      if (!created.has_value()) continue;  // no falloc
      auto file = NewFile("image");
      ASSERT_TRUE(file->Write(0, ConstBytes(device.Contents())).has_value());
      file.reset();  // and with it our lock
      Outcome io = Shell("qemu-io -f qcow2 -c 'read -P 0 0 2M' " + Path("image"));
      EXPECT_EQ(io.output.find("failed"), std::string::npos)
          << compat << preallocation << io.output;
      ExpectClean("image", fmt::format("device, {} {}", compat, preallocation));
    }
  }
}

TEST_F(Qcow2Create, SameBytesEachTime) {
  MemoryStore a, b;
  CreateOptions create;
  create.size = 10 * kMiB;
  create.reproducible = true;
  ASSERT_TRUE(CreateQcow2(a, create).has_value());
  ASSERT_TRUE(CreateQcow2(b, create).has_value());
  EXPECT_EQ(a.Contents(), b.Contents());
}

TEST(Qcow2CreateRefuses, WhatQemuRefuses) {
  struct Case {
    uint64_t size;
    std::map<std::string, std::string> options;
    Code code;
    const char* part;
  };
  const Case cases[] = {
      {kMiB, {{"bogus", "1"}}, Code::kUnsupported, "bogus"},
      {kMiB, {{"cluster_size", "256"}}, Code::kUnsupported, "power of two"},
      {kMiB, {{"cluster_size", "4M"}}, Code::kUnsupported, "power of two"},
      {kMiB, {{"cluster_size", "3k"}}, Code::kUnsupported, "power of two"},
      {kMiB, {{"cluster_size", "0"}}, Code::kUnsupported, "power of two"},
      {kMiB, {{"compat", "3"}}, Code::kUnsupported, "compat"},
      {kMiB, {{"refcount_bits", "3"}}, Code::kUnsupported, "refcount_bits"},
      {kMiB, {{"refcount_bits", "0"}}, Code::kUnsupported, "refcount_bits"},
      {kMiB, {{"refcount_bits", "128"}}, Code::kUnsupported, "refcount_bits"},
      {kMiB, {{"extended_l2", "on"}, {"cluster_size", "8k"}}, Code::kUnsupported, "16384"},
      {kMiB, {{"extended_l2", "maybe"}}, Code::kUnsupported, "maybe"},
      {kMiB,
       {{"compat", "0.10"}, {"extended_l2", "on"}},
       Code::kUnsupported,
       "extended_l2 needs compat=1.1"},
      {kMiB,
       {{"compat", "0.10"}, {"lazy_refcounts", "on"}},
       Code::kUnsupported,
       "lazy_refcounts needs"},
      {kMiB,
       {{"compat", "0.10"}, {"refcount_bits", "8"}},
       Code::kUnsupported,
       "refcount_bits other than 16 needs"},
      {kMiB,
       {{"compat", "v2"}, {"compression_type", "zstd"}},
       Code::kUnsupported,
       "compression_type needs"},
      {kMiB, {{"compat", "v2"}, {"data_file", "d"}}, Code::kUnsupported, "data_file needs"},
      {kMiB, {{"compression_type", "lzo"}}, Code::kUnsupported, "lzo"},
      {kMiB, {{"data_file_raw", "on"}}, Code::kUnsupported, "needs data_file"},
      {kMiB, {{"data_file", ""}}, Code::kUnsupported, "data_file"},
      {kMiB,
       {{"data_file", "d"}, {"data_file_raw", "on"}, {"backing_file", "b"}},
       Code::kUnsupported,
       "data_file_raw"},
      {kMiB,
       {{"preallocation", "metadata"}, {"backing_file", "b"}},
       Code::kUnsupported,
       "extended_l2"},
      {kMiB, {{"preallocation", "some"}}, Code::kUnsupported, "some"},
      {kMiB, {{"backing_fmt", "raw"}}, Code::kUnsupported, "backing_fmt needs"},
      {kMiB, {{"backing_file", ""}}, Code::kUnsupported, "parent is empty"},
      {129 * kGiB, {{"cluster_size", "512"}}, Code::kOutOfRange, "larger cluster_size"},
      {(uint64_t{1} << 63) - 1, {{"cluster_size", "2M"}}, Code::kOutOfRange, "too large"},
      {kMiB,
       {{"cluster_size", "512"}, {"backing_file", std::string(500, 'n')}},
       Code::kOutOfRange,
       "do not fit"},
      {64 * kGiB,
       {{"cluster_size", "512"}, {"refcount_bits", "64"}, {"preallocation", "metadata"}},
       Code::kOutOfRange,
       "larger than qcow2 can count"},
  };
  for (const Case& c : cases) {
    Error error = CreateError(c.size, c.options);
    EXPECT_EQ(error.code(), c.code) << c.part << ": " << error.text();
    EXPECT_NE(error.text().find(c.part), std::string::npos) << c.part << ": " << error.text();
  }
  Error error =
      CreateError(kMiB, {{"backing_file", "b"}}, Reference{Reference::kParent, "c", "raw"});
  EXPECT_EQ(error.code(), Code::kUnsupported) << error.text();
}

TEST(Qcow2CreateRefuses, LeavesNoImageBehind) {
  // An error on the way: the old header must be gone, the new one not there yet.
  MemoryStore device(ConstBytes(std::vector<std::byte>(64 * kKiB, std::byte{1})),
                     MemoryStore::Options{.name = "device", .writable = true, .fixed_size = true});
  CreateOptions create;
  create.size = kMiB;
  auto created = CreateQcow2(device, create);
  ASSERT_FALSE(created.has_value());
  EXPECT_EQ(created.error().code(), Code::kNoSpace) << created.error().text();
}

TEST(RefcountClusters, CountThemselves) {
  for (uint32_t bits = kMinClusterBits; bits <= kMaxClusterBits; ++bits) {
    for (uint32_t order = 0; order <= 6; ++order) {
      Header header;
      header.cluster_bits = bits;
      header.refcount_order = order;
      for (uint64_t others : {1ull, 3ull, 63ull, 64ull, 4095ull, 4096ull, 1000003ull, 1ull << 40}) {
        RefcountClusters sizes = RefcountClustersFor(header, others);
        uint64_t total = others + sizes.blocks + sizes.table;
        EXPECT_GE(sizes.blocks * header.refcounts_per_block(), total);
        EXPECT_GE(sizes.table * header.cluster_size() / 8, sizes.blocks);
        // And no more than that: one block fewer would not do.
        EXPECT_LT((sizes.blocks - 1) * header.refcounts_per_block(), total);
        EXPECT_LT((sizes.table - 1) * header.cluster_size() / 8, sizes.blocks);
      }
    }
  }
}

}  // namespace
}  // namespace platter::qcow2
