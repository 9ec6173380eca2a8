// OpenSSL's EVP interface, arranged so that a sector costs little more than its AES rounds: the
// cipher is fetched once a process, the key is expanded once a context, contexts are kept in a pool
// of the Cipher, and a sector only sets the IV of a context that is there.
#include "io/codec/cipher.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <array>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/endian.h"
#include "base/sync.h"
#include "io/codec/hash.h"

namespace platter {
namespace {

constexpr size_t kIvBytes = 16;
using IvBlock = std::array<unsigned char, kIvBytes>;

struct FreeContext {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};
using ContextPtr = std::unique_ptr<EVP_CIPHER_CTX, FreeContext>;

enum class Way : uint8_t { kEncrypt, kDecrypt };

// Everything that one call needs: used by one thread at a time.
struct Keyed {
  ContextPtr data;
  ContextPtr iv;  // kEssivSha256 only: AES-256-ECB
};

// The implementation behind `name`, fetched once and kept for the life of the process.
const EVP_CIPHER* Fetch(Cipher::Mode mode, size_t key_bytes) {
  static const std::array<const EVP_CIPHER*, 5> fetched = {
      EVP_CIPHER_fetch(nullptr, "AES-128-CBC", nullptr),
      EVP_CIPHER_fetch(nullptr, "AES-192-CBC", nullptr),
      EVP_CIPHER_fetch(nullptr, "AES-256-CBC", nullptr),
      EVP_CIPHER_fetch(nullptr, "AES-128-XTS", nullptr),
      EVP_CIPHER_fetch(nullptr, "AES-256-XTS", nullptr)};
  if (mode == Cipher::Mode::kCbc) {
    if (key_bytes == 16 || key_bytes == 24 || key_bytes == 32) return fetched[key_bytes / 8 - 2];
  } else {
    if (key_bytes == 32 || key_bytes == 64) return fetched[key_bytes / 32 + 2];
  }
  return nullptr;
}

const EVP_CIPHER* FetchEssiv() {
  static const EVP_CIPHER* const fetched = EVP_CIPHER_fetch(nullptr, "AES-256-ECB", nullptr);
  return fetched;
}

ContextPtr NewContext(const EVP_CIPHER* cipher, ConstBytes key, Way way) {
  ContextPtr context(EVP_CIPHER_CTX_new());
  if (!context || !cipher) return nullptr;
  auto* raw = reinterpret_cast<const unsigned char*>(key.data());
  if (EVP_CipherInit_ex2(context.get(), cipher, raw, nullptr, way == Way::kEncrypt, nullptr) != 1) {
    return nullptr;
  }
  EVP_CIPHER_CTX_set_padding(context.get(), 0);
  return context;
}

class AesCipher final : public Cipher {
 public:
  AesCipher(Iv iv, Tweak tweak, const EVP_CIPHER* cipher, const Secret& key)
      : iv_(iv), tweak_(tweak), cipher_(cipher), key_(key.Clone()) {
    if (iv == Iv::kEssivSha256) {
      Sha256Digest digest = Sha256::Of(key.bytes());
      essiv_key_ = Secret(ConstBytes(digest));
      OPENSSL_cleanse(digest.data(), digest.size());
    }
  }

  Tweak tweak() const override { return tweak_; }

  Result<> Encrypt(uint64_t sector, Bytes data) const override {
    return Run(Way::kEncrypt, sector, data);
  }
  Result<> Decrypt(uint64_t sector, Bytes data) const override {
    return Run(Way::kDecrypt, sector, data);
  }

  // Makes the first context of each way, so that a key that OpenSSL refuses shows here.
  bool Prime() {
    Keyed encrypt = Make(Way::kEncrypt), decrypt = Make(Way::kDecrypt);
    if (!encrypt.data || !decrypt.data) return false;
    Release(Way::kEncrypt, std::move(encrypt));
    Release(Way::kDecrypt, std::move(decrypt));
    return true;
  }

 private:
  Keyed Make(Way way) const {
    Keyed keyed{.data = NewContext(cipher_, key_.bytes(), way), .iv = nullptr};
    if (iv_ == Iv::kEssivSha256) {
      keyed.iv = NewContext(FetchEssiv(), essiv_key_.bytes(), Way::kEncrypt);
      if (!keyed.iv) keyed.data.reset();
    }
    return keyed;
  }

  Keyed Acquire(Way way) const {
    {
      std::lock_guard lock(mutex_);
      auto& pool = pool_[static_cast<size_t>(way)];
      if (!pool.empty()) {
        Keyed keyed = std::move(pool.back());
        pool.pop_back();
        return keyed;
      }
    }
    return Make(way);
  }

  void Release(Way way, Keyed keyed) const {
    std::lock_guard lock(mutex_);
    pool_[static_cast<size_t>(way)].push_back(std::move(keyed));
  }

  bool MakeIv(const Keyed& keyed, uint64_t sector, IvBlock& block) const {
    le64 number = iv_ == Iv::kPlain ? static_cast<uint32_t>(sector) : sector;
    block = {};
    std::memcpy(block.data(), &number, sizeof number);
    if (iv_ != Iv::kEssivSha256) return true;
    int made = 0;
    return EVP_EncryptUpdate(keyed.iv.get(), block.data(), &made, block.data(), kIvBytes) == 1;
  }

  Result<> Run(Way way, uint64_t sector, Bytes data) const {
    CHECK(data.size() % kSector == 0);
    Keyed keyed = Acquire(way);
    if (!keyed.data) return Fail(Code::kIo, "cipher: OpenSSL cannot make a context");
    auto* at = reinterpret_cast<unsigned char*>(data.data());
    bool good = true;
    for (auto* end = at + data.size(); good && at != end; at += kSector, ++sector) {
      IvBlock iv;
      int made = 0;
      good = MakeIv(keyed, sector, iv) &&
             EVP_CipherInit_ex2(keyed.data.get(), nullptr, nullptr, iv.data(), -1, nullptr) == 1 &&
             EVP_CipherUpdate(keyed.data.get(), at, &made, at, kSector) == 1 &&
             made == static_cast<int>(kSector);
    }
    if (!good) return Fail(Code::kIo, "cipher: OpenSSL failed at sector {}", sector - 1);
    Release(way, std::move(keyed));
    return {};
  }

  const Iv iv_;
  const Tweak tweak_;
  const EVP_CIPHER* const cipher_;
  const Secret key_;
  Secret essiv_key_;
  // Guards pool_; a leaf: nothing is locked or waited for under it. The pools grow to the number
  // of threads that were in here at once.
  mutable Mutex mutex_;
  mutable std::array<std::vector<Keyed>, 2> pool_;
};

}  // namespace

Secret::~Secret() { OPENSSL_cleanse(bytes_.data(), bytes_.size()); }

Result<std::unique_ptr<Cipher>> Cipher::Create(Mode mode, Iv iv, Tweak tweak, const Secret& key) {
  const char* name = mode == Mode::kCbc ? "AES-CBC" : "AES-XTS";
  const EVP_CIPHER* cipher = Fetch(mode, key.bytes().size());
  if (!cipher) {
    return Fail(Code::kUnsupported, "{} with a key of {} bytes", name, key.bytes().size());
  }
  auto made = std::make_unique<AesCipher>(iv, tweak, cipher, key);
  if (!made->Prime()) {
    return Fail(Code::kUnsupported, "{}: OpenSSL refuses the key (two equal halves?)", name);
  }
  return made;
}

}  // namespace platter
