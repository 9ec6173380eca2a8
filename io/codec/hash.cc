#include "io/codec/hash.h"

#include <openssl/evp.h>

#include <algorithm>
#include <iterator>

#include "base/check.h"

namespace platter {
namespace {

struct Named {
  HashKind kind;
  const char* name;
};
constexpr Named kNames[] = {
    {HashKind::kSha1, "SHA1"}, {HashKind::kSha256, "SHA256"}, {HashKind::kSha512, "SHA512"}};

// Fetched once: a fetch takes longer than the digest of a sector.
const EVP_MD* Md(HashKind kind) {
  static const std::array<const EVP_MD*, std::size(kNames)> mds = [] {
    std::array<const EVP_MD*, std::size(kNames)> all{};
    for (size_t i = 0; i < all.size(); ++i) all[i] = EVP_MD_fetch(nullptr, kNames[i].name, nullptr);
    return all;
  }();
  return mds[static_cast<size_t>(kind)];
}

EVP_MD_CTX* ContextOf(void* context) { return static_cast<EVP_MD_CTX*>(context); }

}  // namespace

std::string_view HashName(HashKind kind) { return kNames[static_cast<size_t>(kind)].name; }

std::optional<HashKind> FindHash(std::string_view name) {
  auto same = [&](const Named& named) {
    return std::ranges::equal(name, std::string_view(named.name), [](char a, char b) {
      return (a >= 'a' && a <= 'z' ? static_cast<char>(a - 'a' + 'A') : a) == b;
    });
  };
  auto found = std::ranges::find_if(kNames, same);
  if (found == std::end(kNames)) return std::nullopt;
  return found->kind;
}

Hasher::Hasher(HashKind kind) : context_(EVP_MD_CTX_new()) {
  CHECK(context_ != nullptr);
  CHECK(EVP_DigestInit_ex2(ContextOf(context_), Md(kind), nullptr) == 1);
}
Hasher::~Hasher() { EVP_MD_CTX_free(ContextOf(context_)); }

void Hasher::Update(ConstBytes bytes) {
  CHECK(EVP_DigestUpdate(ContextOf(context_), bytes.data(), bytes.size()) == 1);
}

size_t Hasher::FinishInto(Bytes digest) {
  unsigned size = 0;
  auto* raw = reinterpret_cast<unsigned char*>(digest.data());
  CHECK(digest.size() >= static_cast<size_t>(EVP_MD_CTX_get_size(ContextOf(context_))));
  CHECK(EVP_DigestFinal_ex(ContextOf(context_), raw, &size) == 1);
  return size;
}

std::vector<std::byte> Hasher::Finish() {
  std::vector<std::byte> digest(EVP_MAX_MD_SIZE);
  digest.resize(FinishInto(digest));
  return digest;
}

Sha256Digest Sha256::Finish() {
  Sha256Digest digest;
  hasher_.FinishInto(digest);
  return digest;
}

Sha256Digest Sha256::Of(ConstBytes bytes) {
  Sha256 hash;
  hash.Update(bytes);
  return hash.Finish();
}

std::string Hex(ConstBytes bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * bytes.size());
  for (std::byte byte : bytes) {
    auto value = std::to_integer<unsigned>(byte);
    text += kDigits[value >> 4];
    text += kDigits[value & 15];
  }
  return text;
}

}  // namespace platter
