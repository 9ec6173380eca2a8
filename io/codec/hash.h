// SHA-256 and friends through OpenSSL.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"

namespace platter {

// The digests that manifests name; SHA-1 is no proof against malice, only against accidents.
enum class HashKind : uint8_t { kSha1, kSha256, kSha512 };
std::string_view HashName(HashKind kind);  // "SHA256"
// Of the name that HashName gives, in any case.
std::optional<HashKind> FindHash(std::string_view name);

class Hasher {
 public:
  explicit Hasher(HashKind kind);
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  void Update(ConstBytes bytes);
  std::vector<std::byte> Finish();  // once, last
  // As Finish, without allocating: into `digest`, which has room; the number of bytes.
  size_t FinishInto(Bytes digest);

 private:
  void* context_;  // OpenSSL's
};

using Sha256Digest = std::array<std::byte, 32>;

class Sha256 {
 public:
  void Update(ConstBytes bytes) { hasher_.Update(bytes); }
  Sha256Digest Finish();  // once, last
  static Sha256Digest Of(ConstBytes bytes);

 private:
  Hasher hasher_{HashKind::kSha256};
};

std::string Hex(ConstBytes bytes);

}  // namespace platter
