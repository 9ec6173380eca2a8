// Compressed files by the real tools, whole, cut short and damaged.
#include "io/unpack/unpacked_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <fstream>
#include <thread>

#include "io/memory_store.h"
#include "io/open_file.h"
#include "io/unpack/index.h"
#include "tests/interop/qemu.h"
#include "tests/model/random.h"

namespace platter {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_support::MustRun;
using testing_support::TempFolder;

// Text that compresses, noise that does not, and zeros, aligned and not.
std::string MakeContent(size_t size, uint64_t seed = 1) {
  model::Random random(seed);
  std::string content;
  while (content.size() < size) {
    std::string piece(random.Between(1, 300'000), '\0');
    switch (random.Below(4)) {
      case 0: random.Fill(std::as_writable_bytes(std::span(piece))); break;
      case 1:
        for (size_t i = 0; i < piece.size(); ++i) piece[i] = static_cast<char>('a' + i / 7 % 26);
        break;
      default: break;
    }
    content += piece;
  }
  content.resize(size);
  return content;
}

struct Maker {
  const char* name;
  Packing packing;
  const char* command;  // from $in, and its halves $a and $b, to standard output
  bool indexed;         // in parts
};

const Maker kMakers[] = {
    {"gzip", Packing::kGzip, "gzip -c $in", false},
    {"gzip_members", Packing::kGzip, "gzip -9 -c $a; gzip -1 -c $b", false},
    {"gzip_padded", Packing::kGzip, "gzip -c $in; head -c 70000 /dev/zero", false},
    {"xz", Packing::kXz, "xz -c $in", false},
    {"xz_threads", Packing::kXz, "xz -T2 --block-size=1MiB -c $in", true},
    {"xz_streams", Packing::kXz, "xz -0 --check=sha256 -c $a; head -c 8 /dev/zero; xz -c $b", true},
    {"xz_filter", Packing::kXz, "xz --check=none --x86 --delta=dist=4 --lzma2=dict=64KiB -c $in",
     false},
    {"zstd", Packing::kZstd, "zstd -q -c $in", false},
    {"zstd_unsized", Packing::kZstd, "zstd -q -c < $in | cat; zstd -q -c < $b | cat", false},
    {"zstd_frames", Packing::kZstd,
     "for i in 0 1 2 3 4; do dd if=$in bs=1M skip=$i count=1 2>/dev/null > $a.part; zstd -q -c "
     "$a.part; done; dd if=$in bs=1M skip=5 2>/dev/null > $a.part; zstd -q -c $a.part",
     true},
    {"pzstd", Packing::kZstd, "pzstd -q -p 2 -c $in", false},
    {"bzip2", Packing::kBzip2, "bzip2 -c $in", false},
    {"bzip2_streams", Packing::kBzip2, "bzip2 -1 -c $a; bzip2 -c $b", false},
};

class UnpackTest : public testing::Test {
 protected:
  std::string File(const std::string& name) { return folder_.File(name); }

  void Put(const std::string& name, std::string_view content) {
    std::ofstream(File(name), std::ios::binary) << content;
  }
  static std::string Get(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  // The compressed file for `content`; what it unpacks to is `content`, but for zstd_unsized.
  std::string Make(const Maker& maker, const std::string& content) {
    Put("in", content);
    Put("a", content.substr(0, content.size() / 2));
    Put("b", content.substr(content.size() / 2));
    MustRun("in=" + File("in") + " a=" + File("a") + " b=" + File("b") + "; { " + maker.command +
            "; } > " + File("packed"));
    return Get(File("packed"));
  }
  static std::string Expected(const Maker& maker, const std::string& content) {
    std::string expected = content;
    if (std::string_view(maker.name) == "zstd_unsized")
      expected += content.substr(content.size() / 2);
    return expected;
  }

  static Result<std::unique_ptr<Store>> Open(std::string_view packed, Packing packing,
                                             const UnpackLimits& limits = {}) {
    return OpenUnpacked(std::make_unique<MemoryStore>(AsBytes(packed)), packing, limits);
  }

  TempFolder folder_;
};

// Everything that the store holds, or its error.
Result<std::string> ReadAll(Store& store) {
  std::string text(TRY(store.Size()), '?');
  TRY(store.Read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

Result<std::string> Unpack(std::string_view packed, Packing packing) {
  auto store = TRY(OpenUnpacked(std::make_unique<MemoryStore>(AsBytes(packed)), packing, {}));
  return ReadAll(*store);
}

std::string ReadAt(Store& store, uint64_t at, size_t length) {
  std::string text(length, '?');
  auto read = store.Read(at, std::as_writable_bytes(std::span(text)));
  EXPECT_TRUE(read.has_value()) << read.error().text();
  return text;
}

// Ascending pieces of data and holes that cover the store; a hole is zero in `content`.
void ExpectRunsOf(Store& store, const std::string& content) {
  uint64_t holes = 0;
  for (uint64_t at = 0; at < content.size();) {
    auto run = store.FindRun(at);
    ASSERT_TRUE(run.has_value()) << run.error().text();
    ASSERT_GT(run->length, 0u);
    ASSERT_LE(run->length, content.size() - at);
    if (!run->data) {
      EXPECT_TRUE(IsZero(AsBytes(std::string_view(content)).subspan(at, run->length))) << at;
      holes += run->length;
    }
    at += run->length;
  }
  EXPECT_GT(holes, content.size() / 8);
  EXPECT_FALSE(store.FindRun(content.size()).has_value());
}

TEST_F(UnpackTest, WhatEveryToolMakes) {
  const std::string content = MakeContent(6'000'123);
  for (const Maker& maker : kMakers) {
    SCOPED_TRACE(maker.name);
    const std::string packed = Make(maker, content);
    const std::string expected = Expected(maker, content);
    {
      auto store = Open(packed, maker.packing);
      ASSERT_TRUE(store.has_value()) << store.error().text();
      ExpectRunsOf(**store, expected);
      auto all = ReadAll(**store);
      ASSERT_TRUE(all.has_value()) << all.error().text();
      EXPECT_TRUE(*all == expected);
    }
    auto store = Open(packed, maker.packing);
    ASSERT_TRUE(store.has_value()) << store.error().text();
    model::Random random(7);
    for (int i = 0; i < 50; ++i) {
      const uint64_t at = random.Below(expected.size());
      const size_t length = random.Below(std::min<size_t>(expected.size() - at, 100'000) + 1);
      ASSERT_TRUE(ReadAt(**store, at, length) == expected.substr(at, length)) << at;
    }
    EXPECT_EQ(*(*store)->Size(), expected.size());
    std::string past(2, '?');
    auto read = (*store)->Read(expected.size() - 1, std::as_writable_bytes(std::span(past)));
    ASSERT_FALSE(read.has_value());
    EXPECT_EQ(read.error().code(), Code::kCorrupt);
  }
}

TEST_F(UnpackTest, PartsAreFoundWhereTheFileNamesThem) {
  const std::string content = MakeContent(6'000'123);
  for (const Maker& maker : kMakers) {
    SCOPED_TRACE(maker.name);
    const std::string packed = Make(maker, content);
    MemoryStore store(AsBytes(std::string_view(packed)));
    auto index = ReadIndex(store, maker.packing);
    ASSERT_EQ(index && index->blocks.size() > 1, maker.indexed);
    if (index) {
      EXPECT_EQ(index->size, content.size());
    }
  }
}

// One BGZF member: a gzip member that says how long it is.
std::string BgzfMember(std::string_view content) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY), Z_OK);
  unsigned char extra[] = {'B', 'C', 2, 0, 0, 0};
  gz_header header{};
  header.extra = extra;
  header.extra_len = sizeof extra;
  deflateSetHeader(&stream, &header);
  std::string out(content.size() + 1000, '\0');
  stream.next_in = reinterpret_cast<unsigned char*>(const_cast<char*>(content.data()));
  stream.avail_in = static_cast<unsigned>(content.size());
  stream.next_out = reinterpret_cast<unsigned char*>(out.data());
  stream.avail_out = static_cast<unsigned>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  out[16] = static_cast<char>((out.size() - 1) & 255);
  out[17] = static_cast<char>((out.size() - 1) >> 8);
  return out;
}

TEST_F(UnpackTest, Bgzf) {
  const std::string content = MakeContent(5'000'001);
  std::string packed;
  for (size_t at = 0; at < content.size(); at += 60'000) {
    packed += BgzfMember(std::string_view(content).substr(at, 60'000));
  }
  packed += BgzfMember("");  // its mark of the end
  MemoryStore store(AsBytes(std::string_view(packed)));
  auto index = ReadIndex(store, Packing::kGzip);
  ASSERT_TRUE(index.has_value());
  EXPECT_EQ(index->size, content.size());
  EXPECT_EQ(index->blocks.size(), 5u);  // taken together up to 1 MiB

  auto opened = Open(packed, Packing::kGzip);
  ASSERT_TRUE(opened.has_value());
  EXPECT_EQ(ReadAt(**opened, 4'000'000, 123), content.substr(4'000'000, 123));
  EXPECT_TRUE(*ReadAll(**opened) == content);

  std::string lie = packed;
  const size_t tail = packed.size() - BgzfMember("").size() - 4;
  lie[tail] = static_cast<char>(lie[tail] + 1);  // the last member's length
  auto read = Unpack(lie, Packing::kGzip);
  ASSERT_FALSE(read.has_value());
  EXPECT_EQ(read.error().code(), Code::kCorrupt);
}

// Small files, so that every byte has its turn.
TEST_F(UnpackTest, CutShortAnywhereIsAnError) {
  const std::string content = MakeContent(400'000, 3).substr(0, 2000) + std::string(5000, 'x');
  for (const Maker& maker : kMakers) {
    SCOPED_TRACE(maker.name);
    const std::string packed = Make(maker, content);
    const std::string expected = Expected(maker, content);
    size_t whole_members = 0;
    for (size_t length = 1; length < packed.size(); ++length) {
      auto cut = Unpack(std::string_view(packed).substr(0, length), maker.packing);
      if (cut.has_value()) {
        // After a whole member (or in the padding behind the last) nothing tells that one is gone.
        EXPECT_TRUE(expected.starts_with(*cut));
        ++whole_members;
        continue;
      }
      ASSERT_TRUE(cut.error().code() == Code::kCorrupt) << length << cut.error().text();
      EXPECT_THAT(cut.error().text(), HasSubstr("offset 0x"));
    }
    const bool padded = std::string_view(maker.command).find("/dev/zero") != std::string::npos;
    if (!padded) {
      EXPECT_LE(whole_members, 13u);
    }
  }
}

TEST_F(UnpackTest, AFlippedBitIsAnErrorOrChangesNothing) {
  const std::string content = MakeContent(400'000, 3).substr(0, 2000) + std::string(5000, 'x');
  for (const Maker& maker : kMakers) {
    if (std::string_view(maker.name) == "xz_filter") continue;  // without a checksum
    SCOPED_TRACE(maker.name);
    const std::string packed = Make(maker, content);
    const std::string expected = Expected(maker, content);
    size_t errors = 0;
    const size_t step = packed.size() > 20'000 ? 97 : 1;
    for (size_t at = 0; at < packed.size(); at += step) {
      std::string damaged = packed;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << at % 8));
      auto read = Unpack(damaged, maker.packing);
      if (read.has_value()) {
        ASSERT_TRUE(*read == expected) << "byte " << at;
      } else {
        ++errors;
      }
    }
    EXPECT_GT(errors, packed.size() / step / 2);
  }
}

TEST_F(UnpackTest, ADamagedBlockLeavesTheOthersReadable) {
  const std::string content = MakeContent(6'000'123);
  std::string packed = Make(kMakers[4], content);
  MemoryStore whole(AsBytes(std::string_view(packed)));
  auto index = ReadIndex(whole, Packing::kXz);
  ASSERT_TRUE(index.has_value());
  const PackedBlock& block = index->blocks.at(2);
  char& byte = packed[block.host.offset + block.host.length / 2];
  byte = static_cast<char>(byte ^ 1);
  auto store = Open(packed, Packing::kXz);
  ASSERT_TRUE(store.has_value());
  EXPECT_EQ(ReadAt(**store, 0, 100), content.substr(0, 100));
  for (int i = 0; i < 2; ++i) {
    std::string text(10, '?');
    auto read = (*store)->Read(block.guest.offset, std::as_writable_bytes(std::span(text)));
    ASSERT_FALSE(read.has_value());
    EXPECT_EQ(read.error().code(), Code::kCorrupt);
    EXPECT_THAT(read.error().text(), HasSubstr("xz data near offset 0x"));
  }
  EXPECT_EQ(ReadAt(**store, block.guest.end(), 100), content.substr(block.guest.end(), 100));
}

TEST_F(UnpackTest, GarbageBehindAMemberIsAnError) {
  for (const Maker& maker : kMakers) {
    SCOPED_TRACE(maker.name);
    auto read = Unpack(Make(maker, "content\n") + "garbage", maker.packing);
    ASSERT_FALSE(read.has_value());
    EXPECT_EQ(read.error().code(), Code::kCorrupt);
    EXPECT_THAT(read.error().text(), HasSubstr("offset 0x"));
  }
}

TEST_F(UnpackTest, TheHeadCostsNoMoreThanTheHead) {
  const std::string content = MakeContent(20'000'000);
  const std::string packed = Make(kMakers[0], content);
  auto store = Open(packed, Packing::kGzip, {.most = 8 * kMiB, .given = true});
  ASSERT_TRUE(store.has_value());
  EXPECT_EQ(ReadAt(**store, 0, 100), content.substr(0, 100));
  EXPECT_EQ(ReadAt(**store, 4'000'000, 100), content.substr(4'000'000, 100));
  auto size = (*store)->Size();
  ASSERT_FALSE(size.has_value());
  EXPECT_EQ(size.error().code(), Code::kRefused);
  EXPECT_THAT(size.error().text(), AllOf(HasSubstr("8388608 bytes"), HasSubstr("--unpack-limit")));
  EXPECT_EQ(ReadAt(**store, 100, 100), content.substr(100, 100));
}

TEST_F(UnpackTest, BombsEndAtTheRatio) {
  MustRun("head -c 1200M /dev/zero | zstd -q -c > " + File("bomb"));
  const std::string packed = Get(File("bomb"));
  auto store = Open(packed, Packing::kZstd);
  ASSERT_TRUE(store.has_value());
  auto size = (*store)->Size();
  ASSERT_FALSE(size.has_value());
  EXPECT_EQ(size.error().code(), Code::kRefused);
  EXPECT_THAT(size.error().text(), AllOf(HasSubstr("200 times"), HasSubstr("--unpack-limit")));

  auto trusted = Open(packed, Packing::kZstd, {.most = 2 * kGiB, .given = true});
  EXPECT_EQ(*(*trusted)->Size(), 1200 * kMiB);
  auto run = (*trusted)->FindRun(0);
  ASSERT_TRUE(run.has_value());
  EXPECT_FALSE(run->data);
}

TEST_F(UnpackTest, AnAnnouncedSizeIsHeldToTheLimitToo) {
  MustRun("truncate -s 1200M " + File("zeros") + " && xz -0 -T2 --block-size=8MiB -c " +
          File("zeros") + " > " + File("bomb"));
  auto opened = Open(Get(File("bomb")), Packing::kXz);
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code(), Code::kRefused);
  auto info = Open(Get(File("bomb")), Packing::kXz, {.brief = true});
  ASSERT_TRUE(info.has_value());
  EXPECT_EQ(*(*info)->Size(), 1200 * kMiB);
  EXPECT_EQ(ReadAt(**info, 1000 * kMiB, 4), std::string(4, '\0'));
}

TEST_F(UnpackTest, WindowsThatTakeTooMuchMemory) {
  Put("in", "content");
  MustRun("xz -9 -c " + File("in") + " > " + File("xz") + " && zstd -q --ultra --long=27 -c < " +
          File("in") + " > " + File("zstd"));
  for (auto [packing, name] : {std::pair(Packing::kXz, "xz"), {Packing::kZstd, "zstd"}}) {
    auto read = Open(Get(File(name)), packing, {.memory = 16 * kMiB});
    ASSERT_TRUE(read.has_value());
    auto all = ReadAll(**read);
    ASSERT_FALSE(all.has_value()) << name;
    EXPECT_EQ(all.error().code(), Code::kUnsupported);
    EXPECT_THAT(all.error().text(), HasSubstr("16 MiB allowed"));
    EXPECT_EQ(*Unpack(Get(File(name)), packing), "content");
  }
}

TEST_F(UnpackTest, WrappedTwice) {
  const std::string content = MakeContent(3'000'000);
  Put("in", content);
  MustRun("gzip -c " + File("in") + " | xz -T2 --block-size=256KiB -c > " + File("twice"));
  auto outer = Open(Get(File("twice")), Packing::kXz);
  ASSERT_TRUE(outer.has_value());
  auto inner = OpenUnpacked(std::move(*outer), Packing::kGzip, {});
  ASSERT_TRUE(inner.has_value());
  EXPECT_TRUE(*ReadAll(**inner) == content);
}

TEST_F(UnpackTest, ItIsForReadingOnly) {
  auto store = Open(Make(kMakers[0], "content"), Packing::kGzip);
  ASSERT_TRUE(store.has_value());
  EXPECT_FALSE((*store)->writable());
  auto written = (*store)->Write(0, AsBytes(std::string_view("x")));
  ASSERT_FALSE(written.has_value());
  EXPECT_EQ(written.error().code(), Code::kReadOnly);
  EXPECT_THAT(written.error().text(), HasSubstr("compressed with gzip"));
  EXPECT_FALSE((*store)->Resize(1).has_value());
  EXPECT_FALSE((*store)->Zero({0, 1}, true).has_value());
}

TEST_F(UnpackTest, ManyThreads) {
  const std::string content = MakeContent(6'000'123);
  for (const Maker& maker : {kMakers[0], kMakers[4], kMakers[9]}) {
    SCOPED_TRACE(maker.name);
    const std::string packed = Make(maker, content);
    auto store = Open(packed, maker.packing);
    ASSERT_TRUE(store.has_value());
    std::vector<std::jthread> threads;
    for (uint64_t seed = 0; seed < 4; ++seed) {
      threads.emplace_back([&, seed] {
        model::Random random(seed);
        for (int i = 0; i < 50; ++i) {
          const uint64_t at = random.Below(content.size() - 10'000);
          EXPECT_TRUE(ReadAt(**store, at, 10'000) == content.substr(at, 10'000)) << at;
          EXPECT_TRUE((*store)->FindRun(at).has_value());
        }
      });
    }
    threads.clear();
    EXPECT_EQ(*(*store)->Size(), content.size());
  }
}

}  // namespace
}  // namespace platter
