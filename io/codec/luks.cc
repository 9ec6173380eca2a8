#include "io/codec/luks.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "io/codec/luks_disk.h"
#include "io/codec/luks_kdf.h"

namespace platter {
namespace {

using internal::kLuksSector;
using internal::kLuksSlotAlign;
using internal::kLuksStripes;
using internal::LuksHash;
using internal::LuksHeaderDisk;
using internal::LuksSlotDisk;

// Where key material may end: cryptsetup and QEMU need 2 MiB. Bounds what a caller reads.
constexpr uint64_t kMaxKeyArea = 16 * kMiB;

struct ModeName {
  std::string_view name;
  Cipher::Mode mode;
  Cipher::Iv iv;
};
constexpr std::array<ModeName, 6> kModes = {{
    {"xts-plain64", Cipher::Mode::kXts, Cipher::Iv::kPlain64},
    {"xts-plain", Cipher::Mode::kXts, Cipher::Iv::kPlain},
    {"xts-essiv:sha256", Cipher::Mode::kXts, Cipher::Iv::kEssivSha256},
    {"cbc-plain64", Cipher::Mode::kCbc, Cipher::Iv::kPlain64},
    {"cbc-plain", Cipher::Mode::kCbc, Cipher::Iv::kPlain},
    {"cbc-essiv:sha256", Cipher::Mode::kCbc, Cipher::Iv::kEssivSha256},
}};

std::string_view NameOf(Cipher::Mode mode, Cipher::Iv iv) {
  for (const ModeName& known : kModes) {
    if (known.mode == mode && known.iv == iv) return known.name;
  }
  return "unknown";
}

bool TakesKey(Cipher::Mode mode, uint64_t bytes) {
  if (mode == Cipher::Mode::kXts) return bytes == 32 || bytes == 64;
  return bytes == 16 || bytes == 24 || bytes == 32;
}

// The text of a fixed field, which must end in it.
template <size_t kSize>
Result<std::string_view> Text(const std::array<char, kSize>& field, std::string_view what) {
  const void* end = std::memchr(field.data(), 0, kSize);
  if (!end) return Fail(Code::kCorrupt, "LUKS header: {} is not terminated", what);
  return std::string_view(field.data(), static_cast<const char*>(end));
}

template <size_t kSize>
void SetText(std::array<char, kSize>& field, std::string_view text) {
  field = {};
  std::memcpy(field.data(), text.data(), std::min(text.size(), kSize - 1));
}

Result<> ParseCipher(const LuksHeaderDisk& disk, Luks1& header) {
  auto name = TRY(Text(disk.cipher_name, "the cipher's name"));
  auto mode = TRY(Text(disk.cipher_mode, "the cipher's mode"));
  auto hash = TRY(Text(disk.hash, "the hash's name"));
  if (name != "aes") return Fail(Code::kUnsupported, "LUKS: cipher '{}'", Printable(name));
  auto known = std::ranges::find(kModes, mode, &ModeName::name);
  if (known == kModes.end()) {
    return Fail(Code::kUnsupported, "LUKS: cipher mode 'aes-{}'", Printable(mode));
  }
  header.mode = known->mode;
  header.iv = known->iv;
  header.hash = TRY(internal::FindLuksHash(hash))->name;
  header.key_bytes = disk.key_bytes;
  if (!TakesKey(header.mode, header.key_bytes)) {
    return Fail(Code::kUnsupported, "LUKS: aes-{} with a key of {} bytes", mode, header.key_bytes);
  }
  return {};
}

Result<Luks1::Slot> ParseSlot(const LuksSlotDisk& disk, size_t index, const Luks1& header) {
  if (disk.stripes != kLuksStripes) {
    return Fail(Code::kCorrupt, "LUKS key slot {}: {} stripes, not {}", index,
                uint32_t{disk.stripes}, kLuksStripes);
  }
  if (disk.iterations == 0) {
    return Fail(Code::kCorrupt, "LUKS key slot {}: 0 iterations", index);
  }
  // Cannot wrap: 2^41 and 64 * 4000.
  Range material{uint64_t{disk.material} * kLuksSector, uint64_t{header.key_bytes} * kLuksStripes};
  if (material.offset < RoundUp(Luks1::kHeaderBytes, kLuksSector)) {
    return Fail(Code::kCorrupt, "LUKS key slot {}: key material overlaps the header (offset {:#x})",
                index, material.offset);
  }
  if (material.end() > header.payload) {
    return Fail(Code::kCorrupt,
                "LUKS key slot {}: key material overlaps the payload (offset {:#x}, {} bytes, "
                "payload {:#x})",
                index, material.offset, material.length, header.payload);
  }
  if (material.end() > kMaxKeyArea) {
    return Fail(Code::kUnsupported, "LUKS key slot {}: key material at {:#x}, past {} MiB", index,
                material.offset, kMaxKeyArea / kMiB);
  }
  return Luks1::Slot{disk.iterations, disk.salt, material};
}

Result<> ParseSlots(const LuksHeaderDisk& disk, Luks1& header) {
  header.key_area = Luks1::kHeaderBytes;
  for (size_t i = 0; i < Luks1::kSlots; ++i) {
    uint32_t state = disk.slots[i].state;
    if (state == internal::kLuksSlotUnused) continue;
    if (state != internal::kLuksSlotActive) {
      return Fail(Code::kCorrupt, "LUKS key slot {}: state {:#x} is neither active nor unused", i,
                  state);
    }
    auto slot = TRY(ParseSlot(disk.slots[i], i, header));
    for (size_t j = 0; j < i; ++j) {
      if (header.slots[j] && header.slots[j]->material.Overlaps(slot.material)) {
        return Fail(Code::kCorrupt, "LUKS key slots {} and {}: key material overlaps", j, i);
      }
    }
    header.key_area = std::max(header.key_area, RoundUp(slot.material.end(), kLuksSector));
    header.slots[i] = slot;
  }
  return {};
}

// The master key, if `slot` opens with the passphrase.
Result<std::optional<Secret>> TrySlot(const Luks1& header, const LuksHash& hash,
                                      const Luks1::Slot& slot, ConstBytes key_area,
                                      ConstBytes passphrase) {
  if (!FitsIn(slot.material.offset, slot.material.length, key_area.size())) return std::nullopt;
  Secret slot_key(header.key_bytes);
  TRY(internal::Pbkdf2(hash, passphrase, slot.salt, slot.iterations, slot_key.bytes()));
  auto cipher = TRY(header.MakeCipher(Cipher::Tweak::kGuest, slot_key));
  // Whole sectors for the cipher; a 24-byte key ends half-way into one.
  Secret split(RoundUp(slot.material.length, kLuksSector));
  ConstBytes material = key_area.subspan(slot.material.offset);
  std::ranges::copy(material.first(std::min(material.size(), split.bytes().size())),
                    split.bytes().begin());
  TRY(cipher->Decrypt(0, split.bytes()));
  Secret master(header.key_bytes);
  TRY(internal::AfMerge(hash, ConstBytes(split.bytes()).first(slot.material.length),
                        master.bytes()));
  std::array<std::byte, 20> digest;
  TRY(internal::Pbkdf2(hash, master.bytes(), header.digest_salt, header.digest_iterations, digest));
  if (CRYPTO_memcmp(digest.data(), header.digest.data(), digest.size()) != 0) return std::nullopt;
  return master;
}

Result<std::string> RandomUuid() {
  std::array<std::byte, 16> bytes;
  TRY(internal::RandomSecret(bytes));
  bytes[6] = (bytes[6] & std::byte{0x0f}) | std::byte{0x40};  // version 4: random
  bytes[8] = (bytes[8] & std::byte{0x3f}) | std::byte{0x80};
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", std::to_integer<unsigned>(bytes[i]));
  }
  return text;
}

// Rounds for the slot and for the digest of a new header.
struct Rounds {
  uint32_t slot;
  uint32_t digest;
};
Result<Rounds> ChooseRounds(const LuksOptions& options, const LuksHash& hash) {
  constexpr uint32_t kFewest = 1000;  // the specification's recommendation, section 6
  uint32_t slot = options.iterations;
  if (slot == 0) {
    slot = TRY(internal::CalibratePbkdf2(hash, options.key_bytes, options.iteration_ms));
  }
  slot = std::max(slot, kFewest);
  // The digest guards nothing that the slot does not: an eighth, as QEMU and cryptsetup do.
  Rounds rounds{slot, std::max(slot / 8, kFewest)};
  uint64_t work = internal::Pbkdf2Work(hash, rounds.slot, options.key_bytes) +
                  internal::Pbkdf2Work(hash, rounds.digest, sizeof(LuksHeaderDisk::digest));
  if (work > kLuksMaxWork) {
    return Fail(Code::kOutOfRange, "LUKS: {} iterations are more than we would unlock", slot);
  }
  return rounds;
}

// An unlocked slot 0 and seven unused ones, laid out as QEMU and cryptsetup lay them out.
Result<LuksHeaderDisk> NewHeader(const LuksOptions& options, Rounds rounds) {
  LuksHeaderDisk disk = {};
  disk.magic = internal::kLuksMagic;
  disk.version = 1;
  SetText(disk.cipher_name, "aes");
  SetText(disk.cipher_mode, NameOf(options.mode, options.iv));
  SetText(disk.hash, options.hash);
  SetText(disk.uuid, options.uuid.empty() ? TRY(RandomUuid()) : options.uuid);
  disk.key_bytes = options.key_bytes;
  disk.digest_iterations = rounds.digest;
  TRY(internal::RandomSecret(disk.digest_salt));
  uint64_t at = kLuksSlotAlign;
  for (LuksSlotDisk& slot : disk.slots) {
    slot.state = internal::kLuksSlotUnused;
    slot.material = static_cast<uint32_t>(at / kLuksSector);
    slot.stripes = kLuksStripes;
    at += RoundUp(uint64_t{options.key_bytes} * kLuksStripes, kLuksSlotAlign);
  }
  disk.payload = static_cast<uint32_t>(at / kLuksSector);
  disk.slots[0].state = internal::kLuksSlotActive;
  disk.slots[0].iterations = rounds.slot;
  TRY(internal::RandomSecret(disk.slots[0].salt));
  return disk;
}

}  // namespace

std::string Luks1::CipherName() const { return fmt::format("aes-{}", NameOf(mode, iv)); }

Result<std::unique_ptr<Cipher>> Luks1::MakeCipher(Cipher::Tweak tweak,
                                                  const Secret& master_key) const {
  return Cipher::Create(mode, iv, tweak, master_key);
}

Result<Luks1> ParseLuks1(ConstBytes from) {
  auto disk = LoadAt<LuksHeaderDisk>(from, 0);
  if (!disk) {
    return Fail(Code::kCorrupt, "LUKS header: cut off ({} of {} bytes)", from.size(), sizeof *disk);
  }
  if (disk->magic != internal::kLuksMagic) return Fail(Code::kCorrupt, "LUKS header: no magic");
  if (disk->version == 2) return Fail(Code::kUnsupported, "LUKS2");
  if (disk->version != 1) {
    return Fail(Code::kUnsupported, "LUKS version {}", uint16_t{disk->version});
  }
  Luks1 header = {};
  TRY(ParseCipher(*disk, header));
  header.digest = disk->digest;
  header.digest_salt = disk->digest_salt;
  header.digest_iterations = disk->digest_iterations;
  if (header.digest_iterations == 0) {
    return Fail(Code::kCorrupt, "LUKS header: 0 iterations for the digest of the master key");
  }
  header.uuid = TRY(Text(disk->uuid, "the UUID"));
  header.payload = uint64_t{disk->payload} * kLuksSector;
  if (header.payload < RoundUp(Luks1::kHeaderBytes, kLuksSector)) {
    return Fail(Code::kCorrupt, "LUKS header: the payload overlaps it (offset {:#x})",
                header.payload);
  }
  TRY(ParseSlots(*disk, header));
  return header;
}

Result<Secret> UnlockLuks1(const Luks1& header, ConstBytes key_area, ConstBytes passphrase,
                           uint64_t max_work) {
  const LuksHash& hash = *TRY(internal::FindLuksHash(header.hash));
  uint64_t digest_work = internal::Pbkdf2Work(hash, header.digest_iterations, header.digest.size());
  uint64_t spent = 0;
  size_t active = 0;
  std::string passed_over;
  for (size_t i = 0; i < Luks1::kSlots; ++i) {
    if (!header.slots[i]) continue;
    ++active;
    // Each below 2^36.
    uint64_t work =
        digest_work + internal::Pbkdf2Work(hash, header.slots[i]->iterations, header.key_bytes);
    if (spent + work > max_work) {
      passed_over += fmt::format("{}{}", passed_over.empty() ? "" : ", ", i);
      continue;
    }
    spent += work;
    auto opened = TRY_AS(fmt::format("LUKS key slot {}", i),
                         TrySlot(header, hash, *header.slots[i], key_area, passphrase));
    if (opened) return std::move(*opened);
  }
  if (active == 0) return Fail(Code::kRefused, "LUKS: no key slot is active");
  if (!passed_over.empty()) {
    return Fail(Code::kRefused,
                "LUKS: key slot {} asks for more PBKDF2 iterations than we spend (limit {} "
                "HMAC-SHA-256), and the passphrase opens no other",
                passed_over, max_work);
  }
  return Fail(Code::kRefused, "LUKS: the passphrase opens none of {} active key slots", active);
}

Result<NewLuks> FormatLuks1(const LuksOptions& options, ConstBytes passphrase) {
  const LuksHash& hash = *TRY(internal::FindLuksHash(options.hash));
  if (!TakesKey(options.mode, options.key_bytes)) {
    return Fail(Code::kUnsupported, "LUKS: aes-{} with a key of {} bytes",
                NameOf(options.mode, options.iv), options.key_bytes);
  }
  if (options.uuid.size() >= sizeof(LuksHeaderDisk::uuid)) {
    return Fail(Code::kOutOfRange, "LUKS: a UUID of {} characters", options.uuid.size());
  }
  LuksHeaderDisk disk = TRY(NewHeader(options, TRY(ChooseRounds(options, hash))));
  Secret master(options.key_bytes);
  TRY(internal::RandomSecret(master.bytes()));
  TRY(internal::Pbkdf2(hash, master.bytes(), disk.digest_salt, disk.digest_iterations,
                       disk.digest));
  NewLuks made;
  made.header = TRY(ParseLuks1(AsBytes(disk)));

  const Luks1::Slot& slot = *made.header.slots[0];
  Secret slot_key(options.key_bytes), split(RoundUp(slot.material.length, kLuksSector));
  TRY(internal::Pbkdf2(hash, passphrase, slot.salt, slot.iterations, slot_key.bytes()));
  TRY(internal::AfSplit(hash, master.bytes(), split.bytes().first(slot.material.length)));
  TRY(TRY(made.header.MakeCipher(Cipher::Tweak::kGuest, slot_key))->Encrypt(0, split.bytes()));

  made.area.resize(made.header.payload);
  StoreAt(Bytes(made.area), 0, disk);
  std::ranges::copy(split.bytes(),
                    made.area.begin() + static_cast<ptrdiff_t>(slot.material.offset));
  made.master_key = std::move(master);
  return made;
}

}  // namespace platter
