// A hostile LUKS1 header and its key material, parsed and unlocked with little patience. The first
// bytes are the header and its area; the passphrase is fixed, so that a valid seed opens.
#include <algorithm>
#include <array>
#include <cstdint>

#include "base/check.h"
#include "io/codec/luks.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  ConstBytes from = std::as_bytes(std::span(data, size));
  auto header = ParseLuks1(from);
  if (!header) return 0;
  // What the parser promises its callers.
  CHECK(header->key_area >= Luks1::kHeaderBytes && header->key_area <= 16 * kMiB);
  for (const auto& slot : header->slots) {
    if (!slot) continue;
    CHECK(slot->iterations > 0 && slot->material.end() <= header->key_area);
    CHECK(slot->material.end() <= header->payload);
  }
  ConstBytes area = from.first(std::min<uint64_t>(size, header->key_area));
  auto key = UnlockLuks1(*header, area, AsBytes(std::string_view("corpus")), 3000);
  if (!key) return 0;
  auto cipher = header->MakeCipher(Cipher::Tweak::kGuest, *key);
  if (!cipher) return 0;
  std::array<std::byte, 1024> sectors = {};
  CHECK((*cipher)->Encrypt(1, sectors).has_value());
  CHECK((*cipher)->Decrypt(1, sectors).has_value());
  CHECK(IsZero(sectors));
  return 0;
}
