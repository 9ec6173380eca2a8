// SHA-256 and friends through OpenSSL.
#pragma once

#include <array>
#include <memory>
#include <string>

#include "base/bytes.h"

namespace platter {

using Sha256Digest = std::array<std::byte, 32>;

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Update(ConstBytes bytes);
  Sha256Digest Finish();  // once, last
  static Sha256Digest Of(ConstBytes bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Hex(ConstBytes bytes);

}  // namespace platter
