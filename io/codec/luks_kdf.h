// The two constructions that LUKS1 makes of a hash: PBKDF2, and the anti-forensic split and merge.
// Private to io/codec.
#pragma once

#include <openssl/types.h>

#include <string_view>

#include "base/bytes.h"
#include "base/result.h"
#include "io/codec/cipher.h"

namespace platter::internal {

// A hash that LUKS1 headers name. Lives for ever.
struct LuksHash {
  std::string_view name;
  const EVP_MD* md;
  uint32_t digest_bytes;
  uint32_t cost;  // of a round, in units of kLuksMaxWork
};

// kUnsupported, by name, where we or this OpenSSL do not have it.
Result<const LuksHash*> FindLuksHash(std::string_view name);

// What Pbkdf2 with these numbers costs, in units of kLuksMaxWork. Does not wrap.
uint64_t Pbkdf2Work(const LuksHash& hash, uint32_t iterations, size_t key_bytes);

// PBKDF2 (RFC 2898) with HMAC. `iterations` < 2^31.
Result<> Pbkdf2(const LuksHash& hash, ConstBytes passphrase, ConstBytes salt, uint32_t iterations,
                Bytes key);

// Rounds of a Pbkdf2 of `key_bytes` that take about `milliseconds` of CPU time here.
Result<uint32_t> CalibratePbkdf2(const LuksHash& hash, size_t key_bytes, uint32_t milliseconds);

// Specification section 2.4: `key` from as many stripes of its size as `split` holds.
Result<> AfMerge(const LuksHash& hash, ConstBytes split, Bytes key);
// And back, into random stripes.
Result<> AfSplit(const LuksHash& hash, ConstBytes key, Bytes split);

Result<> RandomSecret(Bytes into);

}  // namespace platter::internal
