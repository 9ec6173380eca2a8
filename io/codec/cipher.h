// Encryption of sectors in place: AES-XTS and AES-CBC through OpenSSL, with the tweaks that disk
// formats use.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace platter {

// Bytes that are wiped when they go away: passphrases and keys.
class Secret {
 public:
  Secret() = default;
  explicit Secret(ConstBytes bytes) : bytes_(bytes.begin(), bytes.end()) {}
  explicit Secret(size_t size) : bytes_(size) {}
  Secret(Secret&&) = default;
  Secret& operator=(Secret&& other) noexcept {
    bytes_.swap(other.bytes_);  // what was here is wiped with `other`
    return *this;
  }
  ~Secret();
  ConstBytes bytes() const { return bytes_; }
  Bytes bytes() { return bytes_; }
  Secret Clone() const { return Secret(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// A keyed cipher over 512-byte sectors. Any thread, any number at once.
class Cipher {
 public:
  static constexpr uint32_t kSector = 512;

  // Which address of an Extent numbers its sectors: qcow2's LUKS takes the host offset, its legacy
  // AES and whole-disk LUKS the guest offset.
  enum class Tweak : uint8_t { kGuest, kHost };
  enum class Mode : uint8_t { kCbc, kXts };
  // kPlain: the low 32 bits of the sector number, little-endian, then zeros; kPlain64: all 64 bits
  // of it; kEssivSha256: what kPlain64 says, encrypted by AES-256 under the SHA-256 of the key.
  enum class Iv : uint8_t { kPlain, kPlain64, kEssivSha256 };

  // `key`: 16, 24 or 32 bytes for CBC, twice 16 or 32 for XTS, and then two keys that differ (XTS
  // with equal ones is not XTS): kUnsupported otherwise.
  static Result<std::unique_ptr<Cipher>> Create(Mode mode, Iv iv, Tweak tweak, const Secret& key);
  virtual ~Cipher() = default;

  virtual Tweak tweak() const = 0;

  // In place. `data` is whole sectors, the first of which is number `sector`. Fails only where
  // OpenSSL runs out of memory; `data` is then undefined.
  virtual Result<> Encrypt(uint64_t sector, Bytes data) const = 0;
  virtual Result<> Decrypt(uint64_t sector, Bytes data) const = 0;
};

}  // namespace platter
