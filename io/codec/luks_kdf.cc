#include "io/codec/luks_kdf.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/endian.h"
#include "base/math.h"

namespace platter::internal {
namespace {

struct FreeMdContext {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};
using MdContext = std::unique_ptr<EVP_MD_CTX, FreeMdContext>;

const unsigned char* Raw(ConstBytes bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}
unsigned char* Raw(Bytes bytes) { return reinterpret_cast<unsigned char*>(bytes.data()); }

void XorInto(Bytes into, ConstBytes from) {
  for (size_t i = 0; i < into.size(); ++i) into[i] ^= from[i];
}

// The diffusion of section 2.4: each piece of a digest's size becomes the hash of its number and
// itself; the last is cut to fit.
Result<> Diffuse(const LuksHash& hash, EVP_MD_CTX* context, Bytes block) {
  std::array<std::byte, EVP_MAX_MD_SIZE> digest;
  for (uint32_t number = 0; !block.empty(); ++number) {
    Bytes piece = block.first(std::min<size_t>(block.size(), hash.digest_bytes));
    be32 prefix = number;
    if (EVP_DigestInit_ex2(context, hash.md, nullptr) != 1 ||
        EVP_DigestUpdate(context, &prefix, sizeof prefix) != 1 ||
        EVP_DigestUpdate(context, piece.data(), piece.size()) != 1 ||
        EVP_DigestFinal_ex(context, Raw(Bytes(digest)), nullptr) != 1) {
      return Fail(Code::kIo, "LUKS: OpenSSL failed to hash");
    }
    std::memcpy(piece.data(), digest.data(), piece.size());
    block = block.subspan(piece.size());
  }
  return {};
}

// Folds all stripes but the last into `folded`.
Result<> Fold(const LuksHash& hash, ConstBytes split, Bytes folded) {
  MdContext context(EVP_MD_CTX_new());
  if (!context) return Fail(Code::kIo, "LUKS: out of memory");
  size_t size = folded.size();
  CHECK(size > 0 && split.size() >= size && split.size() % size == 0);
  std::ranges::fill(folded, std::byte{0});
  for (size_t at = 0; at + size < split.size(); at += size) {
    XorInto(folded, split.subspan(at, size));
    TRY(Diffuse(hash, context.get(), folded));
  }
  return {};
}

uint64_t CpuNanoseconds() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace

Result<const LuksHash*> FindLuksHash(std::string_view name) {
  static const std::array<LuksHash, 6> known = {{
      {"sha1", EVP_MD_fetch(nullptr, "SHA1", nullptr), 20, 1},
      {"sha224", EVP_MD_fetch(nullptr, "SHA224", nullptr), 28, 1},
      {"sha256", EVP_MD_fetch(nullptr, "SHA256", nullptr), 32, 1},
      {"sha384", EVP_MD_fetch(nullptr, "SHA384", nullptr), 48, 2},
      {"sha512", EVP_MD_fetch(nullptr, "SHA512", nullptr), 64, 2},
      {"ripemd160", EVP_MD_fetch(nullptr, "RIPEMD160", nullptr), 20, 2},
  }};
  for (const LuksHash& hash : known) {
    if (hash.name != name) continue;
    if (!hash.md) return Fail(Code::kUnsupported, "LUKS: this OpenSSL has no hash '{}'", name);
    return &hash;
  }
  return Fail(Code::kUnsupported, "LUKS: hash '{}'", Printable(name));
}

uint64_t Pbkdf2Work(const LuksHash& hash, uint32_t iterations, size_t key_bytes) {
  // Below 2^32 * 2^32 / 20 * 2.
  return DivideUp(std::min<uint64_t>(key_bytes, std::numeric_limits<uint32_t>::max()),
                  hash.digest_bytes) *
         iterations * hash.cost;
}

Result<> Pbkdf2(const LuksHash& hash, ConstBytes passphrase, ConstBytes salt, uint32_t iterations,
                Bytes key) {
  constexpr uint32_t kMax = std::numeric_limits<int32_t>::max();
  if (iterations == 0 || iterations > kMax || passphrase.size() > kMax) {
    return Fail(Code::kOutOfRange, "LUKS: PBKDF2 of {} rounds", iterations);
  }
  if (PKCS5_PBKDF2_HMAC(AsText(passphrase).data(), static_cast<int>(passphrase.size()), Raw(salt),
                        static_cast<int>(salt.size()), static_cast<int>(iterations), hash.md,
                        static_cast<int>(key.size()), Raw(key)) != 1) {
    return Fail(Code::kIo, "LUKS: OpenSSL failed to derive a key");
  }
  return {};
}

Result<uint32_t> CalibratePbkdf2(const LuksHash& hash, size_t key_bytes, uint32_t milliseconds) {
  constexpr uint64_t kEnough = 50'000'000;  // ns: long enough to measure
  Secret key(key_bytes);
  std::array<std::byte, 32> salt = {};
  for (uint32_t rounds = 2000;; rounds *= 2) {
    uint64_t begin = CpuNanoseconds();
    TRY(Pbkdf2(hash, AsBytes(std::string_view("calibrate")), salt, rounds, key.bytes()));
    uint64_t took = std::max<uint64_t>(CpuNanoseconds() - begin, 1);
    if (took < kEnough && rounds < (1u << 28)) continue;
    double rate = static_cast<double>(rounds) / static_cast<double>(took);
    double wanted = rate * 1e6 * milliseconds;
    return static_cast<uint32_t>(std::min(wanted, double{1u << 30}));
  }
}

Result<> AfMerge(const LuksHash& hash, ConstBytes split, Bytes key) {
  TRY(Fold(hash, split, key));
  XorInto(key, split.last(key.size()));
  return {};
}

Result<> AfSplit(const LuksHash& hash, ConstBytes key, Bytes split) {
  TRY(RandomSecret(split.first(split.size() - key.size())));
  Secret folded(key.size());
  TRY(Fold(hash, split, folded.bytes()));
  XorInto(folded.bytes(), key);
  std::ranges::copy(folded.bytes(), split.last(key.size()).begin());
  return {};
}

Result<> RandomSecret(Bytes into) {
  CHECK(into.size() <= std::numeric_limits<int32_t>::max());
  if (RAND_priv_bytes(Raw(into), static_cast<int>(into.size())) != 1) {
    return Fail(Code::kIo, "LUKS: OpenSSL has no random numbers");
  }
  return {};
}

}  // namespace platter::internal
