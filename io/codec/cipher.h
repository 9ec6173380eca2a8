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
  Secret(Secret&&) = default;
  Secret& operator=(Secret&&) = default;
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
  // plain: low 32 bits of the sector number; plain64: all 64; essiv: plain64 encrypted with the
  // hash of the key.
  enum class Iv : uint8_t { kPlain, kPlain64, kEssivSha256 };

  // `key`: 16, 24 or 32 bytes for CBC, twice 16 or 32 for XTS.
  static Result<std::unique_ptr<Cipher>> Create(Mode mode, Iv iv, Tweak tweak, const Secret& key);
  virtual ~Cipher() = default;

  virtual Tweak tweak() const = 0;

  // `data` is whole sectors, the first of which is number `sector`.
  virtual Result<> Encrypt(uint64_t sector, Bytes data) const = 0;
  virtual Result<> Decrypt(uint64_t sector, Bytes data) const = 0;
};

}  // namespace platter
