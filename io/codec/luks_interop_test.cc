// LUKS1 images exchanged with QEMU and read from other tools.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "io/codec/codec_test_util.h"
#include "io/codec/hash.h"
#include "io/codec/luks.h"
#include "io/codec/luks_disk.h"
#include "tests/interop/qemu.h"

namespace platter {
namespace {

using internal::LuksHeaderDisk;
using testing::Buffer;
using testing::RandomBytes;
using testing_support::MustRun;

const ConstBytes kPassphrase = AsBytes(std::string_view("corpus"));

std::string Path(const std::string& name) { return ::testing::TempDir() + "/" + name; }

void WriteFile(const std::string& path, ConstBytes bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(AsText(bytes).data(), static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(out.good()) << path;
}

Buffer ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::string text((std::istreambuf_iterator<char>(in)), {});
  ConstBytes bytes = AsBytes(std::string_view(text));
  return Buffer(bytes.begin(), bytes.end());
}

std::string Secrets() { return " --object secret,id=s,data=corpus "; }
std::string Image(const std::string& path) {
  return " --image-opts driver=luks,key-secret=s,file.filename=" + path + " ";
}

// Unlocks a whole-disk LUKS image and decrypts its payload.
Result<Buffer> ReadWholeDisk(ConstBytes image, ConstBytes passphrase) {
  Luks1 header = TRY(ParseLuks1(image));
  Secret key = TRY(UnlockLuks1(header, image.first(header.key_area), passphrase));
  auto cipher = TRY(header.MakeCipher(Cipher::Tweak::kGuest, key));
  ConstBytes payload = image.subspan(header.payload);
  Buffer plain(payload.begin(), payload.end());
  TRY(cipher->Decrypt(0, plain));
  return plain;
}

struct Variant {
  std::string mode, ivgen, hash;  // as QEMU calls them
  uint32_t key_bits;
  Cipher::Mode our_mode;
  Cipher::Iv our_iv;
  uint32_t key_bytes;
};
using Mode = Cipher::Mode;
using Iv = Cipher::Iv;
const Variant kVariants[] = {
    {"xts", "plain64", "sha256", 256, Mode::kXts, Iv::kPlain64, 64},
    {"xts", "plain64", "sha512", 128, Mode::kXts, Iv::kPlain64, 32},
    {"xts", "plain", "sha1", 256, Mode::kXts, Iv::kPlain, 64},
    {"xts", "essiv", "sha256", 128, Mode::kXts, Iv::kEssivSha256, 32},
    {"cbc", "plain64", "ripemd160", 256, Mode::kCbc, Iv::kPlain64, 32},
    {"cbc", "plain", "sha256", 128, Mode::kCbc, Iv::kPlain, 16},
    {"cbc", "essiv", "sha1", 256, Mode::kCbc, Iv::kEssivSha256, 32},
    {"cbc", "plain64", "sha384", 128, Mode::kCbc, Iv::kPlain64, 16},
    {"xts", "plain64", "sha224", 256, Mode::kXts, Iv::kPlain64, 64},
};

class LuksVariants : public ::testing::TestWithParam<Variant> {
 protected:
  std::string name() const {
    const Variant& v = GetParam();
    return v.mode + v.ivgen + v.hash + std::to_string(v.key_bits);
  }
  LuksOptions options() const {
    const Variant& v = GetParam();
    return {.mode = v.our_mode,
            .iv = v.our_iv,
            .hash = v.hash,
            .key_bytes = v.key_bytes,
            .iterations = 1000};
  }
};
INSTANTIATE_TEST_SUITE_P(All, LuksVariants, ::testing::ValuesIn(kVariants));

TEST_P(LuksVariants, QemuReadsWhatWeMake) {
  NewLuks made = FormatLuks1(options(), kPassphrase).value();
  Buffer plain = RandomBytes(64 * 512, 1), image = made.area, data = plain;
  auto cipher = made.header.MakeCipher(Cipher::Tweak::kGuest, made.master_key).value();
  ASSERT_TRUE(cipher->Encrypt(0, data).has_value());
  image.insert(image.end(), data.begin(), data.end());
  std::string path = Path(name() + "-ours.luks");
  WriteFile(path, image);
  MustRun("qemu-img convert" + Secrets() + Image(path) + "-O raw " + path + ".raw");
  EXPECT_TRUE(ReadFile(path + ".raw") == plain);
  EXPECT_TRUE(ReadWholeDisk(image, kPassphrase).value() == plain);
  auto wrong = ReadWholeDisk(image, AsBytes(std::string_view("corpuS")));
  ASSERT_FALSE(wrong.has_value());
  EXPECT_EQ(wrong.error().code(), Code::kRefused);
}

TEST_P(LuksVariants, WeReadWhatQemuMakes) {
  const Variant& v = GetParam();
  std::string path = Path(name() + "-theirs.luks");
  std::string alg = v.ivgen == "essiv" ? ",ivgen-hash-alg=sha256" : "";
  MustRun("qemu-img create -f luks" + Secrets() + "-o key-secret=s,iter-time=10,cipher-alg=aes-" +
          std::to_string(v.key_bits) + ",cipher-mode=" + v.mode + ",ivgen-alg=" + v.ivgen + alg +
          ",hash-alg=" + v.hash + " " + path + " 128k");
  MustRun("qemu-io" + Secrets() + Image(path) +
          "-c 'write -P 0x5a 0 100k' -c 'write -P 7 100k 28k'");
  Buffer image = ReadFile(path);
  Luks1 header = ParseLuks1(image).value();
  EXPECT_EQ(header.mode, v.our_mode);
  EXPECT_EQ(header.iv, v.our_iv);
  EXPECT_EQ(header.hash, v.hash);
  EXPECT_EQ(header.key_bytes, v.key_bytes);
  Buffer expect(100 << 10, std::byte{0x5a});
  expect.resize(128 << 10, std::byte{7});
  auto plain = ReadWholeDisk(image, kPassphrase);
  ASSERT_TRUE(plain.has_value()) << plain.error().text();
  EXPECT_TRUE(*plain == expect);
}

TEST(LuksTest, LaidOutAsByQemu) {
  std::string path = Path("layout.luks");
  MustRun("qemu-img create -f luks" + Secrets() + "-o key-secret=s,iter-time=10 " + path + " 1M");
  Buffer theirs = ReadFile(path);
  NewLuks made = FormatLuks1({.iterations = 1000, .uuid = "chosen"}, kPassphrase).value();
  Luks1 header = ParseLuks1(theirs).value();
  EXPECT_EQ(made.header.payload, header.payload);
  EXPECT_EQ(made.header.payload, 2068480u);
  EXPECT_EQ(made.header.CipherName(), "aes-xts-plain64");
  EXPECT_EQ(made.header.uuid, "chosen");
  EXPECT_EQ(header.uuid.size(), 36u);
  auto ours_disk = LoadAt<LuksHeaderDisk>(made.area, 0),
       theirs_disk = LoadAt<LuksHeaderDisk>(theirs, 0);
  for (size_t i = 0; i < Luks1::kSlots; ++i) {
    EXPECT_EQ(uint32_t{ours_disk->slots[i].material}, uint32_t{theirs_disk->slots[i].material});
    EXPECT_EQ(uint32_t{ours_disk->slots[i].stripes}, uint32_t{theirs_disk->slots[i].stripes});
    EXPECT_EQ(uint32_t{ours_disk->slots[i].state}, uint32_t{theirs_disk->slots[i].state});
  }
}

TEST(LuksTest, ASecondSlotOpensToo) {
  std::string path = Path("slots.luks");
  MustRun("qemu-img create -f luks" + Secrets() + "-o key-secret=s,iter-time=10 " + path + " 64k");
  MustRun("qemu-img amend" + Secrets() + "--object secret,id=t,data=other" + Image(path) +
          "-o state=active,new-secret=t,keyslot=5,iter-time=10");
  Buffer image = ReadFile(path);
  auto first = ReadWholeDisk(image, kPassphrase);
  auto second = ReadWholeDisk(image, AsBytes(std::string_view("other")));
  ASSERT_TRUE(first.has_value() && second.has_value());
  EXPECT_TRUE(*first == *second);
}

// --- images of other tools -----------------------------------------------------------------------

TEST(LuksSamplesTest, ReadToTheirDigest) {
  const char* samples = getenv("PLATTER_SAMPLES");
  if (!samples) {
    printf("not run: LUKS images of other tools (PLATTER_SAMPLES names no folder)\n");
    return;
  }
  struct Sample {
    std::string path, sha256;
  };
  for (const Sample& sample :
       {Sample{"files/luks1-cbc-plain64-sha512/luks1-cbc-plain64-sha512.luks.gz",
               "6c42d4c10d16722b14f706d2d26efbdb89951770386111a385501626ff95e9ac"},
        Sample{"files/q7-luks/q7-luks.luks.gz",
               "460937809326e8b53e5436d223f4fd36968a1a307bf0d94211f958af036100d5"}}) {
    SCOPED_TRACE(sample.path);
    std::string plain = Path("sample.luks");
    MustRun("gzip -dc " + std::string(samples) + "/" + sample.path + " > " + plain);
    auto content = ReadWholeDisk(ReadFile(plain), kPassphrase);
    ASSERT_TRUE(content.has_value()) << content.error().text();
    EXPECT_EQ(Hex(Sha256::Of(*content)), sample.sha256);
  }
}

}  // namespace
}  // namespace platter
