// The layer against QEMU: its images read the same here, ours read the same there and pass its
// check, without leaks once they are closed.
#include "formats/qcow2/qcow2_layer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/endian.h"
#include "formats/qcow2/qcow2_testing.h"
#include "io/engine/engine.h"
#include "tests/model/random.h"

namespace platter::qcow2 {
namespace {

using Contents = std::vector<std::byte>;

class FileOpener final : public Opener {
 public:
  explicit FileOpener(std::string directory) : directory_(std::move(directory)) {}
  Result<std::unique_ptr<Store>> OpenReference(const Reference& reference, bool writable) override {
    std::filesystem::path name = reference.name;
    std::string path = name.is_absolute() ? name.string() : directory_ + "/" + name.string();
    return TRY(FileStore::Open(path, FileStoreOptions{.writable = writable}));
  }

 private:
  std::string directory_;
};

class Qcow2LayerTest : public QemuTest {
 protected:
  Result<std::unique_ptr<Layer>> TryOpen(const std::string& name, bool writable,
                                         const std::string& snapshot = "") {
    FileOpener opener(Path(""));
    OpenOptions options;
    options.writable = writable;
    options.snapshot = snapshot;
    options.opener = &opener;
    auto store = TRY(FileStore::Open(Path(name), FileStoreOptions{.writable = writable}));
    return OpenQcow2(std::move(store), options);
  }
  std::unique_ptr<Layer> Open(const std::string& name, bool writable = true,
                              const std::string& snapshot = "") {
    auto layer = TryOpen(name, writable, snapshot);
    EXPECT_TRUE(layer) << layer.error().text();
    return layer ? std::move(*layer) : nullptr;
  }
  void Qemu(const std::string& command) { MustRun("cd " + Path("") + " && " + command); }
  // Hides QemuTest's: names of data files are relative to the image.
  void ExpectClean(const std::string& name, const std::string& what) {
    Outcome check = Shell("cd " + Path("") + " && qemu-img check " + name);
    EXPECT_EQ(check.exit_code, 0) << what << "\n" << check.output;
  }
  Contents FileBytes(const std::string& name) {
    std::ifstream file(Path(name), std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    ConstBytes bytes = AsBytes(std::string_view(text));
    return {bytes.begin(), bytes.end()};
  }
  void Poke(const std::string& name, uint64_t at, uint64_t value) {
    auto file = OpenFile(name);
    be64 disk = value;
    ASSERT_TRUE(file->Write(at, AsBytes(disk)));
  }
  uint64_t Peek(const std::string& name, uint64_t at) {
    be64 disk;
    std::memcpy(static_cast<void*>(&disk), FileBytes(name).data() + at, sizeof disk);
    return disk;
  }
  // qemu-img reads `name` as `expected`.
  void ExpectQemuReads(const std::string& name, const Contents& expected,
                       const std::string& more = "") {
    std::filesystem::remove(Path("by-qemu"));
    Qemu("qemu-img convert " + more + " -O raw " + name + " by-qemu");
    EXPECT_TRUE(FileBytes("by-qemu") == expected) << name << " differs in QEMU";
  }
  void ExpectReads(const std::string& name, const Contents& expected,
                   const std::string& snapshot = "") {
    auto layer = Open(name, false, snapshot);
    ASSERT_NE(layer, nullptr);
    Contents got(expected.size());
    auto read = Read(*layer, 0, Bytes(got));
    ASSERT_TRUE(read) << read.error().text();
    EXPECT_TRUE(got == expected) << name << " differs here";
  }
};

Contents Pattern(model::Random& random, size_t length) {
  Contents bytes(length, static_cast<std::byte>(random.Below(255) + 1));
  for (size_t i = 0; i < length; i += 97) bytes[i] = static_cast<std::byte>(random.Next());
  return bytes;
}

// Random writes, zeros and discards; `disk` is what it should read as then.
void WriteAbout(Layer& layer, Contents& disk, uint64_t seed, int operations, uint64_t longest) {
  model::Random random(seed);
  for (int i = 0; i < operations; ++i) {
    uint64_t at = random.Below(disk.size());
    uint64_t length = 1 + random.Below(std::min<uint64_t>(longest, disk.size() - at));
    Result<> done;
    switch (random.Below(8)) {
      case 0:
        done = Zero(layer, {at, length}, random.OneIn(2));
        std::fill_n(disk.begin() + static_cast<ptrdiff_t>(at), length, std::byte{0});
        break;
      case 1: done = layer.Flush(); break;
      default: {
        Contents bytes = Pattern(random, length);
        done = Write(layer, at, ConstBytes(bytes));
        std::ranges::copy(bytes, disk.begin() + static_cast<ptrdiff_t>(at));
      }
    }
    ASSERT_TRUE(done) << done.error().text();
  }
}

TEST_F(Qcow2LayerTest, ReadsWhatQemuWrites) {
  const char* options[] = {
      "compat=0.10",
      "compat=1.1",
      "cluster_size=512",
      "cluster_size=2M",
      "refcount_bits=1",
      "refcount_bits=64",
      "extended_l2=on",
      "lazy_refcounts=on",
      "preallocation=metadata",
      "data_file=data.raw",
      "data_file=data2.raw,data_file_raw=on",
      "extended_l2=on,cluster_size=16k,data_file=data3.raw",
  };
  for (const char* each : options) {
    std::filesystem::remove(Path("a"));
    Qemu(std::string("qemu-img create -q -f qcow2 -o ") + each + " a 9000000");
    Qemu(
        "qemu-io -c 'write -P 1 1000 5000' -c 'write -P 2 65k 300k' -c 'write -P 3 8700k 1k'"
        " -c 'write -z 100k 64k' -c 'discard 256k 64k' -c 'write -P 5 4M 2k' a");
    Qemu("qemu-img convert -O raw a raw");
    ExpectReads("a", FileBytes("raw"));
  }
}

TEST_F(Qcow2LayerTest, ReadsCompressedClusters) {
  Qemu("seq 1 400000 > text && truncate -s 3000000 text");
  for (const char* each : {"compression_type=zlib", "compression_type=zstd", "cluster_size=512",
                           "cluster_size=2M", "extended_l2=on", "compat=0.10"}) {
    Qemu(std::string("qemu-img convert -c -f raw -O qcow2 -o ") + each + " text a");
    ExpectReads("a", FileBytes("text"));
  }
}

TEST_F(Qcow2LayerTest, QemuReadsWhatIsWritten) {
  const char* options[] = {
      "compat=0.10",
      "compat=1.1",
      "cluster_size=512",
      "cluster_size=2M",
      "refcount_bits=1",
      "refcount_bits=64,cluster_size=512",
      "extended_l2=on",
      "extended_l2=on,cluster_size=16k",
      "lazy_refcounts=on",
      "preallocation=metadata",
      "preallocation=falloc,extended_l2=on",
      "data_file=d.raw",
      "data_file=d.raw,data_file_raw=on",
  };
  for (const char* each : options) {
    SCOPED_TRACE(each);
    std::filesystem::remove(Path("a"));
    std::filesystem::remove(Path("d.raw"));
    const uint64_t size = 3000832;
    Qemu(fmt::format("qemu-img create -q -f qcow2 -o {} a {}", each, size));
    Contents disk(size);
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      auto layer = Open("a");
      ASSERT_NE(layer, nullptr);
      WriteAbout(*layer, disk, seed, 60, 200000);
    }
    ExpectReads("a", disk);
    ExpectQemuReads("a", disk);
    ExpectClean("a", each);
    if (std::string(each).ends_with("data_file_raw=on")) {
      Contents raw = FileBytes("d.raw");
      ASSERT_GE(raw.size(), disk.size());
      auto [here, there] = std::ranges::mismatch(disk, raw);
      EXPECT_TRUE(here == disk.end()) << "the raw data file differs at " << here - disk.begin();
      EXPECT_TRUE(IsZero(ConstBytes(raw).subspan(disk.size())));
    }
  }
}

TEST_F(Qcow2LayerTest, QemuReadsPackedUnits) {
  Qemu("seq 1 300000 > text && truncate -s 2500096 text");
  Contents text = FileBytes("text");
  for (const char* each :
       {"compression_type=zlib", "compression_type=zstd", "cluster_size=512", "refcount_bits=1",
        "refcount_bits=2", "extended_l2=on", "cluster_size=2M", "compat=0.10"}) {
    SCOPED_TRACE(each);
    Qemu("rm -f a b");
    Qemu(std::string("qemu-img convert -c -f raw -O qcow2 -o ") + each + " text b");
    Qemu(fmt::format("qemu-img create -q -f qcow2 -o {} a 2500096", each));
    {
      auto from = Open("b", false), to = Open("a");
      ASSERT_TRUE(from && to);
      CopyOptions copy;
      copy.compress = true;
      auto copied = Copy(*from, *to, {0, text.size()}, copy);
      ASSERT_TRUE(copied) << copied.error().text();
      ASSERT_TRUE(to->Flush());
    }
    ExpectQemuReads("a", text);
    ExpectClean("a", each);
    Contents disk = text;
    {
      auto layer = Open("a");
      WriteAbout(*layer, disk, 7, 40, 100000);
    }
    ExpectQemuReads("a", disk);
    ExpectClean("a", each);
  }
}

TEST_F(Qcow2LayerTest, SnapshotsStayAsTheyWere) {
  for (const char* each : {"compat=1.1", "compat=0.10", "cluster_size=512", "extended_l2=on"}) {
    SCOPED_TRACE(each);
    const uint64_t size = 2000384;
    Qemu(fmt::format("rm -f a; qemu-img create -q -f qcow2 -o {} a {}", each, size));
    Contents first(size), disk;
    {
      auto layer = Open("a");
      WriteAbout(*layer, first, 1, 60, 100000);
    }
    Qemu("qemu-img snapshot -c s a");
    disk = first;
    {
      auto layer = Open("a");
      WriteAbout(*layer, disk, 2, 60, 100000);
    }
    ExpectClean("a", each);
    ExpectReads("a", disk);
    ExpectReads("a", first, "s");
    ExpectQemuReads("a", disk);
    ExpectQemuReads("a", first, "-l s");
    EXPECT_EQ(TryOpen("a", true, "s").error().code(), Code::kReadOnly);
    Qemu("qemu-img snapshot -d s a");
    ExpectClean("a", each);
    {
      auto layer = Open("a");
      WriteAbout(*layer, disk, 3, 60, 100000);
    }
    ExpectClean("a", each);
    ExpectQemuReads("a", disk);
  }
}

TEST_F(Qcow2LayerTest, OpeningForWritingChangesNothing) {
  Qemu("qemu-img create -q -f qcow2 a 1M && qemu-img bitmap --add a b");
  Contents before = FileBytes("a");
  Open("a").reset();
  EXPECT_TRUE(FileBytes("a") == before);
}

TEST_F(Qcow2LayerTest, EnabledBitmapsAreMarkedDisabledOnesKept) {
  Qemu(
      "qemu-img create -q -f qcow2 a 1M && qemu-img bitmap --add a on"
      " && qemu-img bitmap --add --disable a off");
  {
    auto layer = Open("a");
    ASSERT_TRUE(Write(*layer, 0, Contents(1000, std::byte{1})));
    ASSERT_TRUE(layer->Flush());
  }
  auto layer = Open("a", false);
  ASSERT_EQ(layer->info().bitmaps.size(), 2u);
  for (const BitmapInfo& bitmap : layer->info().bitmaps) {
    EXPECT_EQ(bitmap.in_use, bitmap.name == "on");
  }
  ExpectClean("a", "bitmaps");
}

TEST_F(Qcow2LayerTest, UnknownAutoclearBitsGoUnknownCompatibleOnesStay) {
  Qemu("qemu-img create -q -f qcow2 a 1M");
  Poke("a", 80, uint64_t{1} << 40);
  Poke("a", 88, uint64_t{1} << 50);
  {
    auto layer = Open("a");
    ASSERT_TRUE(Write(*layer, 0, Contents(1000, std::byte{1})));
  }
  EXPECT_EQ(Peek("a", 80), uint64_t{1} << 40);
  EXPECT_EQ(Peek("a", 88), 0u);
  ExpectClean("a", "autoclear");
}

TEST_F(Qcow2LayerTest, DirtyImagesAreRepairedByAWriter) {
  Qemu("qemu-img create -q -f qcow2 -o lazy_refcounts=on a 1M");
  Shell("qemu-io -c 'write -P 7 0 200k' -c 'flush' -c abort " + Path("a"));
  ASSERT_TRUE(Peek("a", 72) & kDirty);
  Contents disk(1048576);
  std::fill_n(disk.begin(), 200 * 1024, std::byte{7});
  ExpectReads("a", disk);
  ASSERT_TRUE(Peek("a", 72) & kDirty);
  {
    auto layer = Open("a");
    ASSERT_TRUE(Write(*layer, 300000, Contents(1000, std::byte{1})));
  }
  std::fill_n(disk.begin() + 300000, 1000, std::byte{1});
  EXPECT_FALSE(Peek("a", 72) & kDirty);
  ExpectQemuReads("a", disk);
  ExpectClean("a", "dirty");
}

TEST_F(Qcow2LayerTest, CorruptImagesAreOnlyRead) {
  Qemu("qemu-img create -q -f qcow2 a 1M && qemu-io -c 'write -P 7 0 64k' a");
  Poke("a", 72, kCorrupt);
  Contents disk(1048576);
  std::fill_n(disk.begin(), 65536, std::byte{7});
  ExpectReads("a", disk);
  EXPECT_EQ(TryOpen("a", true).error().code(), Code::kCorrupt);
}

TEST_F(Qcow2LayerTest, WhatLiesPastTheEndIsCorrupt) {
  Qemu("qemu-img create -q -f qcow2 a 1G && qemu-io -c 'write -P 7 0 64k' a");
  const uint64_t l1 = Peek("a", 40), l2 = Peek("a", l1) & kOffsetMask;
  const uint64_t data = Peek("a", l2) & kOffsetMask;
  Poke("a", l1 + 8, kCopied | 0x77770000);
  Poke("a", l2 + 8, kCopied | 0x88880000);
  std::filesystem::resize_file(Path("a"), data + 1000);
  auto layer = Open("a", false);
  Contents got(65536), expected(65536);
  std::fill_n(expected.begin(), 1000, std::byte{7});
  ASSERT_TRUE(Read(*layer, 0, Bytes(got)));  // cut short: zeros follow
  EXPECT_TRUE(got == expected);
  auto past = Read(*layer, 65536, Bytes(got));
  EXPECT_EQ(past.error().code(), Code::kCorrupt);
  EXPECT_NE(past.error().text().find("0x88880000"), std::string::npos) << past.error().text();
  past = Read(*layer, 512 * kMiB, Bytes(got));
  EXPECT_EQ(past.error().code(), Code::kCorrupt);
  EXPECT_NE(past.error().text().find("L1 entry 1"), std::string::npos) << past.error().text();
  EXPECT_NE(past.error().text().find("0x77770000"), std::string::npos) << past.error().text();
}

TEST_F(Qcow2LayerTest, MetadataIsNotOverwritten) {
  Qemu("qemu-img create -q -f qcow2 a 1M && qemu-io -c 'write -P 7 0 256k' a");
  const uint64_t l1 = Peek("a", 40), l2 = Peek("a", l1) & kOffsetMask;
  Poke("a", l2, kCopied | l1);      // the first cluster is the L1 table
  Poke("a", l2 + 8, kCopied | l2);  // the second the L2 table
  Contents before = FileBytes("a");
  auto layer = Open("a");
  Contents bytes(100, std::byte{1});
  EXPECT_EQ(Write(*layer, 0, ConstBytes(bytes)).error().code(), Code::kCorrupt);
  EXPECT_EQ(Write(*layer, 65536, ConstBytes(bytes)).error().code(), Code::kCorrupt);
  layer.reset();
  EXPECT_TRUE(FileBytes("a") == before);
}

TEST_F(Qcow2LayerTest, SpaceCalledFreeThatHoldsTablesIsNotGivenOut) {
  Qemu("qemu-img create -q -f qcow2 a 1M && qemu-io -c 'write -P 7 0 256k' a");
  const uint64_t blocks = Peek("a", Peek("a", 48));
  Poke("a", blocks, 0x0001000100010000);  // cluster 3, the L1 table, is "free"
  auto layer = Open("a");
  Contents bytes(100, std::byte{1});
  auto written = Write(*layer, 512 * 1024, ConstBytes(bytes));
  EXPECT_EQ(written.error().code(), Code::kCorrupt);
  EXPECT_NE(written.error().text().find("L1 table"), std::string::npos) << written.error().text();
}

TEST_F(Qcow2LayerTest, PreallocatedSpacePastTheEndOfTheFileIsItsOwners) {
  Qemu(
      "qemu-img create -q -f qcow2 a 1M && qemu-io -c 'write -P 7 0 64k' -c 'write -P 8 64k 64k' "
      "a");
  const uint64_t l1 = Peek("a", 40), l2 = Peek("a", l1) & kOffsetMask;
  const uint64_t second = Peek("a", l2 + 8);
  // The second cluster becomes zeros with space, which the file does not reach any more.
  Poke("a", l2 + 8, second | kZeroFlag);
  std::filesystem::resize_file(Path("a"), second & kOffsetMask);
  Contents disk(1048576);
  std::fill_n(disk.begin(), 65536, std::byte{7});
  auto layer = Open("a");
  Contents bytes(65536, std::byte{9});
  ASSERT_TRUE(Write(*layer, 131072, ConstBytes(bytes)));
  ASSERT_TRUE(Write(*layer, 65536 + 100, ConstBytes(bytes).first(1000)));
  layer.reset();
  std::fill_n(disk.begin() + 131072, 65536, std::byte{9});
  std::fill_n(disk.begin() + 65536 + 100, 1000, std::byte{9});
  ExpectReads("a", disk);
  ExpectQemuReads("a", disk);
  ExpectClean("a", "past the end");
}

// What is missing would read as zeros once the file is longer.
TEST_F(Qcow2LayerTest, AFileThatWasCutIsNotWritten) {
  for (std::string more : {"", "-c"}) {
    Qemu("rm -f a && head -c 1M /dev/urandom > raw && qemu-img convert " + more +
         " -O qcow2 raw a");
    ASSERT_TRUE(TryOpen("a", true));
    std::filesystem::resize_file(Path("a"), std::filesystem::file_size(Path("a")) - 3 * 65536);
    const Contents before = FileBytes("a");
    auto layer = TryOpen("a", true);
    ASSERT_FALSE(layer);
    EXPECT_NE(layer.error().text().find("the file has been cut"), std::string::npos)
        << layer.error().text();
    EXPECT_TRUE(FileBytes("a") == before);
    Contents bytes(65536);
    ASSERT_TRUE(Read(*Open("a", false), 0, Bytes(bytes)));
    EXPECT_FALSE(Read(*Open("a", false), 1048576 - 65536, Bytes(bytes)));
  }
}

TEST_F(Qcow2LayerTest, RefcountTableGrows) {
  // A table cluster of 512 bytes names 64 blocks of 64 clusters: 2 MiB.
  Qemu("qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=64 a 12M");
  Contents disk(12 * kMiB);
  {
    auto layer = Open("a");
    model::Random random(5);
    for (uint64_t at = 0; at < disk.size(); at += kMiB) {
      Contents bytes = Pattern(random, kMiB);
      ASSERT_TRUE(Write(*layer, at, ConstBytes(bytes)));
      std::ranges::copy(bytes, disk.begin() + static_cast<ptrdiff_t>(at));
      if (at % (3 * kMiB) == 0) {
        ASSERT_TRUE(layer->Flush());
      }
    }
  }
  ExpectQemuReads("a", disk);
  ExpectClean("a", "grown");
}

TEST_F(Qcow2LayerTest, DiscardedSpaceIsUsedAgain) {
  Qemu("qemu-img create -q -f qcow2 a 64M");
  auto layer = Open("a");
  Contents bytes(8 * kMiB, std::byte{1});
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(Write(*layer, static_cast<uint64_t>(round % 7) * 8 * kMiB, ConstBytes(bytes)));
    ASSERT_TRUE(Discard(*layer, {0, 64 * kMiB}));
    ASSERT_TRUE(layer->Flush());
  }
  layer.reset();
  EXPECT_LT(std::filesystem::file_size(Path("a")), 20 * kMiB);
  ExpectClean("a", "reused");
}

TEST_F(Qcow2LayerTest, Resizes) {
  for (const char* each : {"compat=1.1", "compat=0.10", "cluster_size=512", "extended_l2=on",
                           "data_file=d.raw", "data_file=d.raw,data_file_raw=on"}) {
    SCOPED_TRACE(each);
    Qemu("rm -f a d.raw");
    Qemu(fmt::format("qemu-img create -q -f qcow2 -o {} a 1000448", each));
    Contents disk(1000448);
    uint64_t seed = 1;
    for (uint64_t size : {5000192u, 3000320u, 700416u, 9000448u, 4096u, 2000384u}) {
      auto layer = Open("a");
      WriteAbout(*layer, disk, seed++, 30, 300000);
      auto resized = layer->resizer()->Resize(size, Preallocation::kOff);
      ASSERT_TRUE(resized) << resized.error().text();
      EXPECT_EQ(layer->info().size, size);
      disk.resize(size);
      WriteAbout(*layer, disk, seed++, 10, 300000);
      layer.reset();
      ExpectReads("a", disk);
      ExpectQemuReads("a", disk);
      ExpectClean("a", fmt::format("{} to {}", each, size));
    }
  }
}

TEST_F(Qcow2LayerTest, ResizesWithPreallocation) {
  for (const char* each : {"compat=1.1", "compat=0.10", "extended_l2=on", "data_file=d.raw"}) {
    for (auto mode : {Preallocation::kMetadata, Preallocation::kFalloc, Preallocation::kFull}) {
      SCOPED_TRACE(each);
      Qemu("rm -f a d.raw");
      Qemu(fmt::format("qemu-img create -q -f qcow2 -o {} a 1000448", each));
      Contents disk(1000448);
      {
        auto layer = Open("a");
        WriteAbout(*layer, disk, 3, 30, 300000);
        auto resized = layer->resizer()->Resize(6000128, mode);
        ASSERT_TRUE(resized) << resized.error().text();
        disk.resize(6000128);
        WriteAbout(*layer, disk, 4, 10, 300000);
      }
      ExpectReads("a", disk);
      ExpectQemuReads("a", disk);
      ExpectClean("a", each);
    }
  }
}

TEST_F(Qcow2LayerTest, ResizesWithASnapshot) {
  Qemu("qemu-img create -q -f qcow2 a 1000448");
  Contents first(1000448), disk;
  {
    auto layer = Open("a");
    WriteAbout(*layer, first, 1, 60, 100000);
  }
  Qemu("qemu-img snapshot -c s a");
  disk = first;
  for (uint64_t size : {3000320u, 500224u, 5000192u}) {
    auto layer = Open("a");
    auto resized = layer->resizer()->Resize(size, Preallocation::kOff);
    ASSERT_TRUE(resized) << resized.error().text();
    disk.resize(size);
    layer.reset();
    ExpectClean("a", "snapshot");
    ExpectQemuReads("a", disk);
    ExpectReads("a", first, "s");
  }
}

TEST_F(Qcow2LayerTest, AMapOfASparseImageIsShort) {
  Qemu("qemu-img create -q -f qcow2 a 64T");
  auto layer = Open("a");
  ASSERT_TRUE(Write(*layer, 40 * kTiB, Contents(5, std::byte{1})));
  Extent extents[8];
  auto count = layer->Map({0, 64 * kTiB}, extents);
  ASSERT_TRUE(count) << count.error().text();
  EXPECT_EQ(extents[0].guest, (Range{0, 40 * kTiB}));
  EXPECT_EQ(extents[0].kind, Kind::kHole);
  ASSERT_TRUE(Discard(*layer, {0, 64 * kTiB}));
  layer.reset();
  ExpectClean("a", "sparse");
}

}  // namespace
}  // namespace platter::qcow2
