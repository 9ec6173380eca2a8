#include "formats/qcow2/qcow2_crypto.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/math.h"
#include "formats/options.h"

namespace platter::qcow2 {
namespace {

constexpr size_t kAesKeyBytes = 16;

std::unexpected<Error> NoPassphrase() {
  return Fail(Code::kRefused, "the image is encrypted: give the passphrase with --secret");
}

// `length` bytes of the LUKS header, or those that the file still has of them.
Result<std::vector<std::byte>> ReadLuks(const Header& header, Store& store, uint64_t length) {
  uint64_t size = TRY(store.Size());
  uint64_t offset = header.crypto->offset;
  length = std::min(length, header.crypto->length);
  length = offset < size ? std::min(length, size - offset) : 0;
  std::vector<std::byte> bytes(length);
  if (length > 0) TRY_AS("LUKS header", store.Read(offset, Bytes(bytes)));
  return bytes;
}

Result<std::unique_ptr<Cipher>> OpenLuks(const Header& header, Store& store, const Secret& secret) {
  auto first = TRY(ReadLuks(header, store, Luks1::kHeaderBytes));
  Luks1 luks = TRY_AS("LUKS header", ParseLuks1(first));
  auto area = TRY(ReadLuks(header, store, luks.key_area));
  Secret key = TRY(UnlockLuks1(luks, area, secret.bytes()));
  return luks.MakeCipher(Cipher::Tweak::kHost, key);
}

Result<std::unique_ptr<Cipher>> OpenAes(const Secret& secret) {
  std::array<std::byte, kAesKeyBytes> padded{};
  ConstBytes passphrase = secret.bytes();
  std::copy_n(passphrase.begin(), std::min(passphrase.size(), padded.size()), padded.begin());
  Secret key{ConstBytes(padded)};
  padded.fill(std::byte{0});
  return Cipher::Create(Cipher::Mode::kCbc, Cipher::Iv::kPlain64, Cipher::Tweak::kGuest, key);
}

std::string_view ModeName(Cipher::Mode mode) { return mode == Cipher::Mode::kXts ? "xts" : "cbc"; }

std::string_view IvName(Cipher::Iv iv) {
  switch (iv) {
    case Cipher::Iv::kPlain: return "plain";
    case Cipher::Iv::kPlain64: return "plain64";
    case Cipher::Iv::kEssivSha256: return "essiv";
  }
  return "";
}

// Without the slots, each an object "[i]" of its own.
Facts LuksFacts(const Luks1& luks) {
  Facts facts;
  facts.push_back({"format", std::string("luks")});
  uint32_t bits = luks.key_bytes * 8 / (luks.mode == Cipher::Mode::kXts ? 2 : 1);
  facts.push_back({"cipher-alg", fmt::format("aes-{}", bits)});
  facts.push_back({"cipher-mode", std::string(ModeName(luks.mode))});
  facts.push_back({"ivgen-alg", std::string(IvName(luks.iv))});
  if (luks.iv == Cipher::Iv::kEssivSha256) {
    facts.push_back({"ivgen-hash-alg", std::string("sha256")});
  }
  facts.push_back({"hash-alg", luks.hash});
  facts.push_back({"uuid", luks.uuid});
  facts.push_back({"payload-offset", luks.payload});
  facts.push_back({"master-key-iters", uint64_t{luks.digest_iterations}});
  return facts;
}

Facts SlotFacts(const Luks1& luks) {
  constexpr uint64_t kStripes = 4000;  // ParseLuks1 takes no other number
  Facts slots;
  for (size_t i = 0; i < luks.slots.size(); ++i) {
    const auto& slot = luks.slots[i];
    Facts facts = {{"active", slot.has_value()}};
    if (slot) {
      facts.push_back({"iters", uint64_t{slot->iterations}});
      facts.push_back({"key-offset", slot->material.offset});
      facts.push_back({"stripes", kStripes});
    }
    slots.push_back({fmt::format("[{}]", i), std::move(facts)});
  }
  return slots;
}

Result<LuksOptions> PlanLuks(const OptionMap& options) {
  LuksOptions luks;
  size_t mode = TRY(ChoiceOption(options, "encrypt.cipher-mode", {"xts", "cbc"})).value_or(0);
  luks.mode = mode == 0 ? Cipher::Mode::kXts : Cipher::Mode::kCbc;
  // No aes-192: its key material is no whole number of sectors, on which QEMU's programs abort.
  size_t alg = TRY(ChoiceOption(options, "encrypt.cipher-alg", {"aes-128", "aes-256"})).value_or(1);
  luks.key_bytes = (alg == 0 ? 16 : 32) * (mode == 0 ? 2 : 1);
  constexpr Cipher::Iv kIvs[] = {Cipher::Iv::kPlain, Cipher::Iv::kPlain64,
                                 Cipher::Iv::kEssivSha256};
  luks.iv = kIvs[TRY(ChoiceOption(options, "encrypt.ivgen-alg", {"plain", "plain64", "essiv"}))
                     .value_or(1)];
  auto iv_hash = TRY(ChoiceOption(options, "encrypt.ivgen-hash-alg", {"sha256"}));
  if (iv_hash && luks.iv != Cipher::Iv::kEssivSha256) {
    return Fail(Code::kUnsupported, "encrypt.ivgen-hash-alg needs encrypt.ivgen-alg=essiv");
  }
  constexpr std::string_view kHashes[] = {"sha1",   "sha224", "sha256",
                                          "sha384", "sha512", "ripemd160"};
  luks.hash =
      kHashes[TRY(ChoiceOption(options, "encrypt.hash-alg",
                               {"sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"}))
                  .value_or(2)];
  uint64_t milliseconds =
      TRY(NumberOption(options, "encrypt.iter-time")).value_or(luks.iteration_ms);
  constexpr uint64_t kMostMilliseconds = 60'000;
  if (milliseconds == 0 || milliseconds > kMostMilliseconds) {
    return Fail(Code::kUnsupported, "encrypt.iter-time {}: must be from 1 to {} milliseconds",
                milliseconds, kMostMilliseconds);
  }
  luks.iteration_ms = static_cast<uint32_t>(milliseconds);
  return luks;
}

}  // namespace

Result<std::unique_ptr<Cipher>> OpenCipher(const Header& header, Store& store,
                                           const Secret* secret) {
  if (header.crypt_method == kCryptNone) return nullptr;
  if (secret == nullptr) return NoPassphrase();
  return header.crypt_method == kCryptLuks ? OpenLuks(header, store, *secret) : OpenAes(*secret);
}

Result<> AddLuksFacts(const Header& header, Store& store, Info& info) {
  if (header.crypt_method != kCryptLuks) return {};
  auto first = TRY(ReadLuks(header, store, Luks1::kHeaderBytes));
  Luks1 luks = TRY_AS("LUKS header", ParseLuks1(first));
  Facts facts = LuksFacts(luks);
  facts.push_back({"slots", SlotFacts(luks)});
  auto encrypt = std::ranges::find(info.facts, std::string_view("encrypt"), &Fact::name);
  if (encrypt != info.facts.end()) encrypt->value = std::move(facts);
  return {};
}

Result<std::optional<LuksOptions>> PlanEncryption(const CreateOptions& options, Header& header) {
  const OptionMap& given = options.options;
  auto format = TRY(ChoiceOption(given, "encrypt.format", {"aes", "luks"}));
  auto legacy = TRY(BoolOption(given, "encryption"));
  if (format && legacy) {
    return Fail(Code::kUnsupported,
                "encryption is another name for encrypt.format=aes: give one of them");
  }
  if (legacy.value_or(false)) format = 0;
  if (!format || *format == 0) {
    for (const auto& [name, value] : given) {
      if (name.starts_with("encrypt.") && name != "encrypt.format" &&
          name != "encrypt.key-secret") {
        return Fail(Code::kUnsupported, "{} needs encrypt.format=luks", name);
      }
    }
    header.crypt_method = format ? kCryptAes : kCryptNone;
    return std::nullopt;
  }
  header.crypt_method = kCryptLuks;
  return TRY(PlanLuks(given));
}

uint64_t LuksAreaBytes(const LuksOptions& options) {
  constexpr uint64_t kAlign = 4096, kStripes = 4000;
  return kAlign + Luks1::kSlots * RoundUp(options.key_bytes * kStripes, kAlign);
}

Result<std::vector<std::byte>> MakeLuksArea(const CreateOptions& options, const Header& header,
                                            const std::optional<LuksOptions>& luks) {
  if (header.crypt_method != kCryptNone && options.secret == nullptr) return NoPassphrase();
  if (!luks) return std::vector<std::byte>();
  if (options.reproducible) {
    return Fail(Code::kRefused,
                "an image encrypted with LUKS cannot be reproducible: its key is random");
  }
  NewLuks made = TRY(FormatLuks1(*luks, options.secret->bytes()));
  return std::move(made.area);
}

}  // namespace platter::qcow2
