// LUKS1: the header that holds a disk's key under passphrases. Whole-disk LUKS begins with it;
// qcow2 carries one inside the image. Spans in, spans out, no I/O: the caller reads and writes.
//
//   [header, 592 bytes][key material of 8 slots, each 4096-aligned][payload]
//
// A slot's material is the master key split into 4000 stripes, all of which are needed, encrypted
// under a key that PBKDF2 makes of the passphrase. The header's digest tells the right master key.
// Opening reads the header, then Luks1::key_area bytes from the same place, then unlocks.
//
// Source: "LUKS1 On-Disk Format Specification" 1.2.3.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "io/codec/cipher.h"

namespace platter {

// A checked header. Offsets are bytes from the header's first.
struct Luks1 {
  static constexpr size_t kHeaderBytes = 592;
  static constexpr size_t kSlots = 8;

  struct Slot {
    uint32_t iterations;  // > 0
    std::array<std::byte, 32> salt;
    Range material;  // behind the header, before the payload, overlapping no other active slot's
  };

  Cipher::Mode mode;
  Cipher::Iv iv;
  std::string hash;    // "sha1", "sha224", "sha256", "sha384", "sha512" or "ripemd160"
  uint32_t key_bytes;  // one that `mode` takes
  std::array<std::byte, 20> digest;
  std::array<std::byte, 32> digest_salt;
  uint32_t digest_iterations;                     // > 0
  std::string uuid;                               // as it is on disk, whatever it says
  std::array<std::optional<Slot>, kSlots> slots;  // the active ones
  uint64_t payload;   // where the encrypted disk begins; in qcow2 it only bounds the key material
  uint64_t key_area;  // bytes of the header and the active slots' material: what unlocking reads

  // "aes-xts-plain64", as cryptsetup says it.
  std::string CipherName() const;
  Result<std::unique_ptr<Cipher>> MakeCipher(Cipher::Tweak tweak, const Secret& master_key) const;
};

// Reads the header at the start of `from`. kCorrupt: not a LUKS header, or one that contradicts
// itself; kUnsupported, by name: LUKS2, another cipher, mode or hash, key material further than
// 16 MiB into the image. Any thread.
Result<Luks1> ParseLuks1(ConstBytes from);

// How much work a header may cause. PBKDF2 rounds are the header's to choose, up to 2^32 for each
// of nine derivations, which is hours. The unit is one HMAC-SHA-256 (about 0.6 us on a machine of
// 2020); SHA-384 and SHA-512 count double, and a derivation counts once for each digest that makes
// up the key. cryptsetup spends two seconds on a slot, 2 to 8 million units.
inline constexpr uint64_t kLuksMaxWork = 48'000'000;  // about 30 s

// The master key. `key_area`: at least header.key_area bytes from the header's first on; bytes
// that a short file lacks may be missing: the slots that need them do not open. Slots are tried in
// order; one that would take the sum of the work past `max_work` is passed over. kRefused: no slot
// opens with the passphrase, or those left ask for too much work (the text says which). Any thread.
Result<Secret> UnlockLuks1(const Luks1& header, ConstBytes key_area, ConstBytes passphrase,
                           uint64_t max_work = kLuksMaxWork);

// What a new header should be; the defaults are QEMU's (and cryptsetup's for LUKS1).
struct LuksOptions {
  Cipher::Mode mode = Cipher::Mode::kXts;
  Cipher::Iv iv = Cipher::Iv::kPlain64;
  std::string hash = "sha256";
  uint32_t key_bytes = 64;  // 24 is for cryptsetup: QEMU 7.2 aborts on it
  // PBKDF2 rounds of the slot; 0: as many as take `iteration_ms` here.
  uint32_t iterations = 0;
  uint32_t iteration_ms = 2000;
  std::string uuid = {};  // empty: a random one
};

struct NewLuks {
  std::vector<std::byte> area;  // all bytes before the payload: header and key material
  Luks1 header;
  Secret master_key;
};

// Makes a header with one slot, for `passphrase`. kUnsupported or kOutOfRange for options that are
// none. Any thread; takes CPU time as the options say.
Result<NewLuks> FormatLuks1(const LuksOptions& options, ConstBytes passphrase);

}  // namespace platter
