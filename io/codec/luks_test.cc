#include "io/codec/luks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "io/codec/codec_test_util.h"
#include "io/codec/hash.h"
#include "io/codec/luks_disk.h"
#include "io/codec/luks_kdf.h"

namespace platter {
namespace {

using internal::LuksHeaderDisk;
using testing::Buffer;
using testing::RandomBytes;

const ConstBytes kPassphrase = AsBytes(std::string_view("corpus"));

TEST(LuksTest, TwoHeadersShareNothing) {
  NewLuks a = FormatLuks1({.iterations = 1000}, kPassphrase).value();
  NewLuks b = FormatLuks1({.iterations = 1000}, kPassphrase).value();
  EXPECT_FALSE(std::ranges::equal(a.master_key.bytes(), b.master_key.bytes()));
  EXPECT_NE(a.header.digest_salt, b.header.digest_salt);
  EXPECT_NE(a.header.slots[0]->salt, b.header.slots[0]->salt);
  EXPECT_NE(a.header.uuid, b.header.uuid);
  EXPECT_EQ(a.header.uuid[14], '4');
}

TEST(LuksTest, CalibratesToTheTimeAsked) {
  NewLuks made = FormatLuks1({.iterations = 0, .iteration_ms = 20}, kPassphrase).value();
  EXPECT_GT(made.header.slots[0]->iterations, 1000u);
  EXPECT_LT(made.header.slots[0]->iterations, 2'000'000u);
  EXPECT_TRUE(UnlockLuks1(made.header, made.area, kPassphrase).has_value());
}

TEST(LuksTest, AKeyThatEndsHalfWayIntoASector) {
  NewLuks made =
      FormatLuks1({.mode = Cipher::Mode::kCbc, .key_bytes = 24, .iterations = 1000}, kPassphrase)
          .value();
  EXPECT_EQ(made.header.slots[0]->material.length % 512, 256u);
  auto opened = UnlockLuks1(made.header, made.area, kPassphrase);
  ASSERT_TRUE(opened.has_value());
  EXPECT_TRUE(std::ranges::equal(opened->bytes(), made.master_key.bytes()));
}

TEST(LuksTest, AnEmptyPassphraseIsOne) {
  NewLuks made = FormatLuks1({.iterations = 1000}, {}).value();
  EXPECT_TRUE(UnlockLuks1(made.header, made.area, {}).has_value());
  EXPECT_FALSE(UnlockLuks1(made.header, made.area, kPassphrase).has_value());
}

TEST(LuksTest, BadOptionsAreRefused) {
  auto code = [](const LuksOptions& options) {
    return FormatLuks1(options, kPassphrase).error().code();
  };
  EXPECT_EQ(code({.hash = "md5"}), Code::kUnsupported);
  EXPECT_EQ(code({.key_bytes = 48}), Code::kUnsupported);
  EXPECT_EQ(code({.iterations = 0x7fffffff}), Code::kOutOfRange);
  EXPECT_EQ(code({.iterations = 1000, .uuid = std::string(40, 'x')}), Code::kOutOfRange);
}

// --- hostile headers -----------------------------------------------------------------------------

class HostileLuks : public ::testing::Test {
 protected:
  void SetUp() override {
    made_ = FormatLuks1({.iterations = 1000}, kPassphrase).value();
    disk_ = *LoadAt<LuksHeaderDisk>(made_.area, 0);
  }
  // The result of parsing the header as it was changed.
  std::string Problem(Code code) {
    auto parsed = ParseLuks1(AsBytes(disk_));
    disk_ = *LoadAt<LuksHeaderDisk>(made_.area, 0);
    if (parsed) return "(parsed)";
    EXPECT_EQ(parsed.error().code(), code) << parsed.error().text();
    return parsed.error().text();
  }
  NewLuks made_;
  LuksHeaderDisk disk_;
};

#define EXPECT_SAYS(text, words) EXPECT_NE((text).find(words), std::string::npos) << (text)

TEST_F(HostileLuks, CutOff) {
  for (size_t size : {0, 6, 207, 591}) {
    EXPECT_FALSE(ParseLuks1(ConstBytes(made_.area).first(size)).has_value());
  }
  EXPECT_TRUE(ParseLuks1(ConstBytes(made_.area).first(592)).has_value());
}

TEST_F(HostileLuks, MagicAndVersion) {
  disk_.magic[0] = std::byte{'l'};
  EXPECT_SAYS(Problem(Code::kCorrupt), "magic");
  disk_.version = 2;
  EXPECT_SAYS(Problem(Code::kUnsupported), "LUKS2");
  disk_.version = 0;
  EXPECT_SAYS(Problem(Code::kUnsupported), "version 0");
  disk_.version = 65535;
  EXPECT_SAYS(Problem(Code::kUnsupported), "version 65535");
}

TEST_F(HostileLuks, Names) {
  disk_.cipher_name.fill('a');
  EXPECT_SAYS(Problem(Code::kCorrupt), "not terminated");
  disk_.cipher_mode.fill('x');
  EXPECT_SAYS(Problem(Code::kCorrupt), "not terminated");
  disk_.hash.fill('x');
  EXPECT_SAYS(Problem(Code::kCorrupt), "not terminated");
  disk_.uuid.fill('x');
  EXPECT_SAYS(Problem(Code::kCorrupt), "not terminated");
  std::memcpy(disk_.cipher_name.data(), "serpent", 8);
  EXPECT_SAYS(Problem(Code::kUnsupported), "serpent");
  disk_.cipher_name = {};
  EXPECT_SAYS(Problem(Code::kUnsupported), "cipher ''");
  for (const char* mode :
       {"xts", "cbc-essiv", "cbc-plain64-x-y", "blub", "", "ecb", "xts-plain6"}) {
    disk_.cipher_mode = {};
    std::memcpy(disk_.cipher_mode.data(), mode, strlen(mode));
    EXPECT_SAYS(Problem(Code::kUnsupported), mode);
  }
  std::memcpy(disk_.hash.data(), "md5\x1b[2J", 8);
  std::string text = Problem(Code::kUnsupported);
  EXPECT_SAYS(text, "md5");
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
}

TEST_F(HostileLuks, Numbers) {
  for (uint32_t bytes : {0u, 1u, 16u, 33u, 48u, 4096u, 0x7fffffffu, 0xffffffffu}) {
    disk_.key_bytes = bytes;
    EXPECT_SAYS(Problem(Code::kUnsupported), "key of");
  }
  disk_.digest_iterations = 0;
  EXPECT_SAYS(Problem(Code::kCorrupt), "0 iterations");
  disk_.slots[0].iterations = 0;
  EXPECT_SAYS(Problem(Code::kCorrupt), "slot 0: 0 iterations");
  for (uint32_t stripes : {0u, 1u, 3999u, 4001u, 0x100000u, 0xffffffffu}) {
    disk_.slots[0].stripes = stripes;
    EXPECT_SAYS(Problem(Code::kCorrupt), "stripes");
  }
  for (uint32_t state : {0u, 1u, 0xffffffffu}) {
    disk_.slots[3].state = state;
    EXPECT_SAYS(Problem(Code::kCorrupt), "key slot 3: state");
  }
}

TEST_F(HostileLuks, Places) {
  for (uint32_t sector : {0u, 1u}) {
    disk_.payload = sector;
    EXPECT_SAYS(Problem(Code::kCorrupt), "payload overlaps");
    disk_.slots[0].material = sector;
    EXPECT_SAYS(Problem(Code::kCorrupt), "overlaps the header");
  }
  disk_.payload = 507;
  EXPECT_SAYS(Problem(Code::kCorrupt), "overlaps the payload");
  for (uint32_t sector : {0x100000u, 0xffffffffu}) {
    disk_.slots[0].material = sector;
    EXPECT_SAYS(Problem(Code::kCorrupt), "overlaps the payload");
  }
  disk_.payload = 0xffffffff;
  disk_.slots[0].material = 0x7fffffff;
  EXPECT_SAYS(Problem(Code::kUnsupported), "past 16 MiB");
  disk_.slots[1] = disk_.slots[0];
  disk_.slots[1].material = uint32_t{disk_.slots[0].material} + 100;
  EXPECT_SAYS(Problem(Code::kCorrupt), "slots 0 and 1");
}

TEST_F(HostileLuks, TooManyIterationsAreRefusedAtOnce) {
  disk_.slots[0].iterations = 0xffffffff;
  Luks1 header = ParseLuks1(AsBytes(disk_)).value();
  auto opened = UnlockLuks1(header, made_.area, kPassphrase);
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code(), Code::kRefused);
  EXPECT_SAYS(opened.error().text(), "key slot 0 asks for more");

  disk_.slots[0].iterations = 1000;
  disk_.digest_iterations = 0x7fffffff;
  header = ParseLuks1(AsBytes(disk_)).value();
  EXPECT_EQ(UnlockLuks1(header, made_.area, kPassphrase).error().code(), Code::kRefused);
}

TEST_F(HostileLuks, ASlotThatAsksForTooMuchDoesNotShutOutTheOthers) {
  disk_.slots[1] = disk_.slots[0];
  disk_.slots[1].material = uint32_t{disk_.slots[0].material} + 504;
  disk_.slots[0].iterations = 0xffffffff;
  Buffer area = made_.area;
  std::copy_n(area.begin() + 4096, 256000, area.begin() + 4096 + 504 * 512);
  StoreAt(Bytes(area), 0, disk_);
  Luks1 header = ParseLuks1(area).value();
  auto opened = UnlockLuks1(header, area, kPassphrase);
  ASSERT_TRUE(opened.has_value()) << opened.error().text();
  EXPECT_TRUE(std::ranges::equal(opened->bytes(), made_.master_key.bytes()));
  // The limit is the caller's.
  EXPECT_FALSE(UnlockLuks1(header, area, kPassphrase, 100).has_value());
}

TEST_F(HostileLuks, MissingKeyMaterialOpensNothing) {
  for (size_t size : {size_t{0}, size_t{592}, size_t{4096}, size_t{4096 + 255999}}) {
    auto opened = UnlockLuks1(made_.header, ConstBytes(made_.area).first(size), kPassphrase);
    ASSERT_FALSE(opened.has_value());
    EXPECT_EQ(opened.error().code(), Code::kRefused);
  }
  EXPECT_EQ(made_.header.key_area, 4096u + 256000u);
  EXPECT_TRUE(
      UnlockLuks1(made_.header, ConstBytes(made_.area).first(made_.header.key_area), kPassphrase)
          .has_value());
  for (internal::LuksSlotDisk& slot : disk_.slots) slot.state = internal::kLuksSlotUnused;
  Luks1 none = ParseLuks1(AsBytes(disk_)).value();
  EXPECT_SAYS(UnlockLuks1(none, made_.area, kPassphrase).error().text(), "no key slot is active");
}

// --- the parts -----------------------------------------------------------------------------------

TEST(LuksKdfTest, Pbkdf2Vectors) {
  // RFC 6070: "password", "salt", 4096 rounds of HMAC-SHA-1.
  std::array<std::byte, 20> key;
  const internal::LuksHash& sha1 = *internal::FindLuksHash("sha1").value();
  ASSERT_TRUE(internal::Pbkdf2(sha1, AsBytes(std::string_view("password")),
                               AsBytes(std::string_view("salt")), 4096, key)
                  .has_value());
  EXPECT_EQ(Hex(key), "4b007901b765489abead49d926f721d065a429c1");
  EXPECT_FALSE(internal::Pbkdf2(sha1, {}, {}, 0, key).has_value());
  EXPECT_FALSE(internal::Pbkdf2(sha1, {}, {}, 0x80000000u, key).has_value());
}

TEST(LuksKdfTest, WorkCountsDigestsAndDoesNotWrap) {
  const internal::LuksHash& sha1 = *internal::FindLuksHash("sha1").value();
  const internal::LuksHash& sha512 = *internal::FindLuksHash("sha512").value();
  EXPECT_EQ(internal::Pbkdf2Work(sha1, 1000, 20), 1000u);
  EXPECT_EQ(internal::Pbkdf2Work(sha1, 1000, 64), 4000u);
  EXPECT_EQ(internal::Pbkdf2Work(sha512, 1000, 64), 2000u);
  EXPECT_GT(internal::Pbkdf2Work(sha512, 0xffffffff, 64), uint64_t{1} << 32);
}

TEST(LuksKdfTest, SplitAndMerge) {
  for (const char* name : {"sha1", "sha256", "sha512"}) {
    const internal::LuksHash& hash = *internal::FindLuksHash(name).value();
    for (size_t size : {16, 24, 32, 64}) {
      Buffer key = RandomBytes(size, size), split(size * 50), back(size);
      ASSERT_TRUE(internal::AfSplit(hash, key, split).has_value());
      ASSERT_TRUE(internal::AfMerge(hash, split, back).has_value());
      EXPECT_TRUE(back == key);
      split[size * 20] ^= std::byte{1};
      ASSERT_TRUE(internal::AfMerge(hash, split, back).has_value());
      EXPECT_FALSE(back == key);
    }
  }
}

}  // namespace
}  // namespace platter
