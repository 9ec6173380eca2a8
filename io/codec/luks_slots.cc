#include "io/codec/luks_slots.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "io/codec/luks_disk.h"
#include "io/codec/luks_kdf.h"

namespace platter {
namespace {

using internal::kLuksSector;
using internal::kLuksStripes;
using internal::LuksHeaderDisk;
using internal::LuksSlotDisk;

constexpr uint32_t kFewestRounds = 1000;  // the specification's recommendation, section 6

uint64_t PlaceOf(size_t slot) {
  return offsetof(LuksHeaderDisk, slots) + slot * sizeof(LuksSlotDisk);
}

LuksWrite Bytes32(uint64_t offset, uint32_t value) {
  const be32 field(value);
  ConstBytes bytes = AsBytes(field);
  return {offset, {bytes.begin(), bytes.end()}};
}

Result<size_t> ChooseSlot(const Luks1& header, std::optional<size_t> wanted) {
  if (wanted) {
    if (*wanted >= Luks1::kSlots) {
      return Fail(Code::kOutOfRange, "LUKS key slot {}: there are {}", *wanted, Luks1::kSlots);
    }
    if (!header.slots[*wanted]) return *wanted;
    return Fail(Code::kRefused, "LUKS key slot {} is active: erase it first", *wanted);
  }
  for (size_t i = 0; i < Luks1::kSlots; ++i) {
    if (!header.slots[i]) return i;
  }
  return Fail(Code::kRefused, "all {} LUKS key slots are active", Luks1::kSlots);
}

// Where the key material of an unused slot goes: what its entry says, if that is a place for it.
Result<Range> MaterialOf(const Luks1& header, const LuksSlotDisk& disk, size_t slot) {
  const Range material{uint64_t{disk.material} * kLuksSector,
                       RoundUp(uint64_t{header.key_bytes} * kLuksStripes, kLuksSector)};
  bool good = disk.stripes == kLuksStripes && material.offset >= 2 * kLuksSector &&
              material.end() <= header.payload;
  for (const auto& other : header.slots) {
    good = good && !(other && other->material.Overlaps(material));
  }
  if (good) return material;
  return Fail(Code::kCorrupt, "LUKS key slot {}: there is no place for its key material ({:#x})",
              slot, material.offset);
}

}  // namespace

Result<std::vector<LuksWrite>> AddLuksSlot(const Luks1& header, ConstBytes header_bytes,
                                           const Secret& master_key, ConstBytes passphrase,
                                           std::optional<size_t> wanted, uint32_t iteration_ms) {
  const size_t slot = TRY(ChooseSlot(header, wanted));
  const auto& hash = *TRY(internal::FindLuksHash(header.hash));
  LuksSlotDisk disk = LoadAt<LuksHeaderDisk>(header_bytes, 0).value().slots[slot];
  const Range material = TRY(MaterialOf(header, disk, slot));
  const uint32_t rounds =
      std::max(TRY(internal::CalibratePbkdf2(hash, header.key_bytes, iteration_ms)), kFewestRounds);
  if (internal::Pbkdf2Work(hash, rounds, header.key_bytes) > kLuksMaxWork) {
    return Fail(Code::kOutOfRange, "LUKS: {} iterations are more than we would unlock", rounds);
  }
  disk.iterations = rounds;
  TRY(internal::RandomSecret(disk.salt));
  Secret slot_key(header.key_bytes), split(material.length);
  TRY(internal::Pbkdf2(hash, passphrase, disk.salt, rounds, slot_key.bytes()));
  TRY(internal::AfSplit(hash, master_key.bytes(),
                        split.bytes().first(uint64_t{header.key_bytes} * kLuksStripes)));
  TRY(TRY(header.MakeCipher(Cipher::Tweak::kGuest, slot_key))->Encrypt(0, split.bytes()));

  // An entry may lie across two sectors: it is whole before its first field says so.
  std::vector<LuksWrite> writes;
  ConstBytes secret = std::as_const(split).bytes();
  writes.push_back({material.offset, {secret.begin(), secret.end()}});
  disk.state = internal::kLuksSlotUnused;
  ConstBytes entry = AsBytes(disk);
  writes.push_back({PlaceOf(slot), {entry.begin(), entry.end()}});
  writes.push_back(Bytes32(PlaceOf(slot), internal::kLuksSlotActive));
  return writes;
}

Result<std::vector<LuksWrite>> EraseLuksSlot(const Luks1& header, size_t slot) {
  if (slot >= Luks1::kSlots || !header.slots[slot]) {
    return Fail(Code::kRefused, "LUKS key slot {} is not active", slot);
  }
  if (std::ranges::count_if(header.slots, [](const auto& each) { return each.has_value(); }) == 1) {
    return Fail(Code::kRefused,
                "LUKS key slot {} is the only one: without it nobody could read the disk", slot);
  }
  const Range material = header.slots[slot]->material;
  std::vector<LuksWrite> writes;
  writes.push_back(Bytes32(PlaceOf(slot), internal::kLuksSlotUnused));
  LuksWrite noise{material.offset, std::vector<std::byte>(material.length)};
  TRY(internal::RandomSecret(noise.bytes));
  writes.push_back(std::move(noise));
  return writes;
}

Result<std::vector<size_t>> FindLuksSlots(const Luks1& header, ConstBytes key_area,
                                          ConstBytes passphrase) {
  std::vector<size_t> found;
  for (size_t i = 0; i < Luks1::kSlots; ++i) {
    if (!header.slots[i]) continue;
    Luks1 alone = header;
    for (size_t j = 0; j < Luks1::kSlots; ++j) {
      if (j != i) alone.slots[j].reset();
    }
    auto key = UnlockLuks1(alone, key_area, passphrase);
    if (key) {
      found.push_back(i);
    } else if (key.error().code() != Code::kRefused) {
      return std::unexpected(std::move(key.error()));
    }
  }
  return found;
}

}  // namespace platter
