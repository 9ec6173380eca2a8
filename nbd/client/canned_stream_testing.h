// A server that says what it was told to say, whatever it hears.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "nbd/client/stream.h"

namespace platter::nbd {

class CannedStream final : public Stream {
 public:
  explicit CannedStream(ConstBytes answers) : answers_(answers.begin(), answers.end()) {}

  Result<size_t> ReadSome(Bytes into) override {
    if (at_ == answers_.size()) return Fail(Code::kIo, "the canned bytes are at their end");
    const size_t count = std::min(into.size(), answers_.size() - at_);
    std::memcpy(into.data(), answers_.data() + at_, count);
    at_ += count;
    return count;
  }
  using Stream::Write;
  Result<> Write(std::span<const iovec>) override { return {}; }
  void Shutdown() override { at_ = answers_.size(); }
  void SetPatience(std::chrono::milliseconds) override {}
  int fd() const override { return -1; }

 private:
  const std::vector<std::byte> answers_;
  size_t at_ = 0;
};

}  // namespace platter::nbd
