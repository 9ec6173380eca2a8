#include "io/codec/cipher.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/endian.h"
#include "io/codec/codec_test_util.h"
#include "io/codec/hash.h"

namespace platter {
namespace {

using testing::Buffer;
using testing::RandomBytes;

Buffer FromHex(std::string_view hex) {
  Buffer out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    out.push_back(static_cast<std::byte>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return out;
}

std::unique_ptr<Cipher> Make(Cipher::Mode mode, Cipher::Iv iv, const Buffer& key) {
  auto made = Cipher::Create(mode, iv, Cipher::Tweak::kHost, Secret(ConstBytes(key)));
  EXPECT_TRUE(made.has_value()) << (made ? "" : made.error().text());
  return std::move(*made);
}

// One block operation of AES, the only thing the models below take from OpenSSL.
void AesBlock(ConstBytes key, std::byte* block, bool encrypt) {
  const EVP_CIPHER* cipher = key.size() == 16   ? EVP_aes_128_ecb()
                             : key.size() == 24 ? EVP_aes_192_ecb()
                                                : EVP_aes_256_ecb();
  EVP_CIPHER_CTX* context = EVP_CIPHER_CTX_new();
  auto* raw = reinterpret_cast<unsigned char*>(block);
  int size = 0;
  CHECK(EVP_CipherInit_ex(context, cipher, nullptr,
                          reinterpret_cast<const unsigned char*>(key.data()), nullptr, encrypt));
  EVP_CIPHER_CTX_set_padding(context, 0);
  CHECK(EVP_CipherUpdate(context, raw, &size, raw, 16) && size == 16);
  EVP_CIPHER_CTX_free(context);
}

void Xor(std::byte* into, const std::byte* from) {
  for (int i = 0; i < 16; ++i) into[i] ^= from[i];
}

Buffer ModelIv(Cipher::Iv iv, const Buffer& key, uint64_t sector) {
  Buffer block(16);
  le64 number = iv == Cipher::Iv::kPlain ? sector & 0xffffffff : sector;
  std::memcpy(block.data(), &number, 8);
  if (iv == Cipher::Iv::kEssivSha256) AesBlock(Sha256::Of(key), block.data(), true);
  return block;
}

// CBC and XTS written down from their definitions.
void ModelEncrypt(Cipher::Mode mode, Cipher::Iv iv, const Buffer& key, uint64_t sector,
                  Bytes data) {
  for (size_t at = 0; at < data.size(); at += 512, ++sector) {
    Buffer chain = ModelIv(iv, key, sector);
    ConstBytes half = ConstBytes(key).first(mode == Cipher::Mode::kXts ? key.size() / 2 : 0);
    if (mode == Cipher::Mode::kXts) {
      AesBlock(ConstBytes(key).subspan(half.size()), chain.data(), true);
    }
    for (size_t i = 0; i < 512; i += 16) {
      std::byte* block = data.data() + at + i;
      Xor(block, chain.data());
      if (mode == Cipher::Mode::kCbc) {
        AesBlock(key, block, true);
        std::memcpy(chain.data(), block, 16);
        continue;
      }
      AesBlock(half, block, true);
      Xor(block, chain.data());
      unsigned carry = 0;  // the tweak times x in GF(2^128)
      for (std::byte& byte : chain) {
        unsigned value = std::to_integer<unsigned>(byte) << 1 | carry;
        byte = static_cast<std::byte>(value);
        carry = value >> 8;
      }
      if (carry) chain[0] ^= std::byte{0x87};
    }
  }
}

TEST(CipherTest, AgreesWithTheDefinitions) {
  using Mode = Cipher::Mode;
  using Iv = Cipher::Iv;
  struct Case {
    Mode mode;
    size_t key_bytes;
  };
  for (Case c : {Case{Mode::kCbc, 16},
                 {Mode::kCbc, 24},
                 {Mode::kCbc, 32},
                 {Mode::kXts, 32},
                 {Mode::kXts, 64}}) {
    Buffer key = RandomBytes(c.key_bytes, 7 + c.key_bytes);
    for (Iv iv : {Iv::kPlain, Iv::kPlain64, Iv::kEssivSha256}) {
      auto cipher = Make(c.mode, iv, key);
      for (uint64_t sector : {uint64_t{0}, uint64_t{1}, uint64_t{0xfffffffe}, uint64_t{1} << 40}) {
        Buffer plain = RandomBytes(4 * 512, sector), expect = plain, data = plain;
        ModelEncrypt(c.mode, iv, key, sector, expect);
        ASSERT_TRUE(cipher->Encrypt(sector, data).has_value());
        EXPECT_TRUE(data == expect) << c.key_bytes << " " << static_cast<int>(iv) << " " << sector;
        ASSERT_TRUE(cipher->Decrypt(sector, data).has_value());
        EXPECT_TRUE(data == plain);
      }
    }
  }
}

TEST(CipherTest, VectorOfTheXtsStandard) {
  // IEEE 1619, vector 4: data unit 0, the first 32 of 512 bytes.
  auto cipher = Make(Cipher::Mode::kXts, Cipher::Iv::kPlain64,
                     FromHex("2718281828459045235360287471352631415926535897932384626433832795"));
  Buffer data(512);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i);
  ASSERT_TRUE(cipher->Encrypt(0, data).has_value());
  EXPECT_EQ(Hex(ConstBytes(data).first(32)),
            "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c");
}

TEST(CipherTest, SectorsAreIndependent) {
  Buffer key = RandomBytes(64, 1);
  auto cipher = Make(Cipher::Mode::kXts, Cipher::Iv::kPlain64, key);
  Buffer plain = RandomBytes(64 * 512, 2), whole = plain, parts = plain;
  ASSERT_TRUE(cipher->Encrypt(1000, whole).has_value());
  for (uint64_t i = 64; i-- > 0;) {
    ASSERT_TRUE(cipher->Encrypt(1000 + i, Bytes(parts).subspan(i * 512, 512)).has_value());
  }
  EXPECT_TRUE(whole == parts);
  EXPECT_TRUE(cipher->Encrypt(0, {}).has_value());
}

TEST(CipherTest, ManyThreadsShareOne) {
  auto cipher = Make(Cipher::Mode::kCbc, Cipher::Iv::kEssivSha256, RandomBytes(32, 3));
  Buffer plain = RandomBytes(16384, 4), expect = plain;
  ASSERT_TRUE(cipher->Encrypt(5, expect).has_value());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        Buffer data = plain;
        ASSERT_TRUE(cipher->Encrypt(5, data).has_value());
        ASSERT_TRUE(data == expect);
        ASSERT_TRUE(cipher->Decrypt(5, data).has_value());
        ASSERT_TRUE(data == plain);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(CipherTest, KeysThatAreNone) {
  auto refused = [](Cipher::Mode mode, size_t bytes) {
    auto made = Cipher::Create(mode, Cipher::Iv::kPlain64, Cipher::Tweak::kGuest,
                               Secret(ConstBytes(RandomBytes(bytes, bytes))));
    return !made && made.error().code() == Code::kUnsupported;
  };
  for (size_t bytes : {0, 8, 15, 17, 40, 48, 64}) {
    EXPECT_TRUE(refused(Cipher::Mode::kCbc, bytes)) << bytes;
  }
  for (size_t bytes : {0, 16, 31, 48, 96, 128}) {
    EXPECT_TRUE(refused(Cipher::Mode::kXts, bytes)) << bytes;
  }
  // Two equal halves.
  EXPECT_FALSE(Cipher::Create(Cipher::Mode::kXts, Cipher::Iv::kPlain64, Cipher::Tweak::kGuest,
                              Secret(ConstBytes(Buffer(64, std::byte{3})))));
}

TEST(CipherTest, TweakIsKept) {
  auto made = Cipher::Create(Cipher::Mode::kCbc, Cipher::Iv::kPlain64, Cipher::Tweak::kGuest,
                             Secret(ConstBytes(RandomBytes(16, 1))));
  EXPECT_EQ((*made)->tweak(), Cipher::Tweak::kGuest);
}

TEST(SecretTest, MovesAndClones) {
  Secret a(ConstBytes(FromHex("010203")));
  Secret b = a.Clone();
  EXPECT_TRUE(std::ranges::equal(a.bytes(), b.bytes()));
  Secret c;
  c = std::move(a);
  EXPECT_EQ(Hex(c.bytes()), "010203");
  EXPECT_EQ(Secret(size_t{5}).bytes().size(), 5u);
}

TEST(HashTest, KnownDigests) {
  EXPECT_EQ(Hex(Sha256::Of({})),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Hex(Sha256::Of(AsBytes(std::string_view("abc")))),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 pieces;
  for (char letter : std::string_view("abc")) pieces.Update(ConstBytes(AsBytes(letter)));
  EXPECT_EQ(pieces.Finish(), Sha256::Of(AsBytes(std::string_view("abc"))));
}

TEST(HashTest, TheKindsOfManifests) {
  for (auto [name, digest] :
       {// of "abc": FIPS 180-4, examples
        std::pair("SHA1", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        std::pair("sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        std::pair("Sha512",
                  "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
                  "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f")}) {
    auto kind = FindHash(name);
    ASSERT_TRUE(kind.has_value());
    EXPECT_EQ(FindHash(HashName(*kind)), kind);
    Hasher hasher(*kind);
    hasher.Update(AsBytes(std::string_view("a")));
    hasher.Update(AsBytes(std::string_view("bc")));
    EXPECT_EQ(Hex(hasher.Finish()), digest);
  }
  EXPECT_FALSE(FindHash("MD5").has_value());
}

}  // namespace
}  // namespace platter
