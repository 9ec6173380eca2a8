// gzip (RFC 1952) through ISA-L, which parses the header, and checks CRC-32 and length.
#include <isa-l/igzip_lib.h>

#include <algorithm>
#include <limits>

#include "io/unpack/decoder.h"

namespace platter::internal {
namespace {

const char* ReasonOf(int result) {
  switch (result) {
    case ISAL_INVALID_BLOCK: return "a block of unknown type or length";
    case ISAL_INVALID_SYMBOL: return "an invalid code";
    case ISAL_INVALID_LOOKBACK: return "a reference to before the start";
    case ISAL_INVALID_WRAPPER: return "no gzip member starts here";
    case ISAL_UNSUPPORTED_METHOD: return "its method is not deflate";
    case ISAL_INCORRECT_CHECKSUM: return "wrong checksum or length of the member";
    default: return "invalid data";
  }
}

class GzipDecoder final : public Decoder {
 public:
  GzipDecoder() { Reset(); }

  Result<Step> Decode(ConstBytes from, Bytes into) override {
    constexpr size_t kMost = std::numeric_limits<uint32_t>::max() / 2;
    from = from.first(std::min(from.size(), kMost));
    into = into.first(std::min(into.size(), kMost));
    state_->next_in = reinterpret_cast<uint8_t*>(const_cast<std::byte*>(from.data()));
    state_->avail_in = static_cast<uint32_t>(from.size());
    state_->next_out = reinterpret_cast<uint8_t*>(into.data());
    state_->avail_out = static_cast<uint32_t>(into.size());
    int result = isal_inflate(state_.get());
    if (result < 0 || result == ISAL_NEED_DICT) return Fail(Code::kCorrupt, "{}", ReasonOf(result));
    return Step{.taken = from.size() - state_->avail_in,
                .made = into.size() - state_->avail_out,
                .ended = state_->block_state == ISAL_BLOCK_FINISH};
  }

  Result<> Restart() override {
    Reset();
    return {};
  }

 private:
  void Reset() {
    isal_inflate_init(state_.get());
    state_->crc_flag = ISAL_GZIP;
  }

  // 90 KiB: not for the stack.
  const std::unique_ptr<inflate_state> state_ = std::make_unique<inflate_state>();
};

}  // namespace

Result<std::unique_ptr<Decoder>> MakeGzipDecoder() { return std::make_unique<GzipDecoder>(); }

}  // namespace platter::internal
