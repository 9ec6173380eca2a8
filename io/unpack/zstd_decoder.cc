// zstd (RFC 8878) through its library, which checks the frame's checksum and content size where it
// has them. Skippable frames are members without content.
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <bit>

#include "io/unpack/decoder.h"

namespace platter::internal {
namespace {

struct FreeContext {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

class ZstdDecoder final : public Decoder {
 public:
  explicit ZstdDecoder(uint64_t memory) : memory_(memory), context_(ZSTD_createDCtx()) {}

  Result<Step> Decode(ConstBytes from, Bytes into) override {
    ZSTD_inBuffer in{from.data(), from.size(), 0};
    ZSTD_outBuffer out{into.data(), into.size(), 0};
    size_t left = ZSTD_decompressStream(context_.get(), &out, &in);
    if (ZSTD_isError(left)) {
      ZSTD_ErrorCode code = ZSTD_getErrorCode(left);
      if (code == ZSTD_error_frameParameter_windowTooLarge) {
        return Fail(Code::kUnsupported,
                    "unpacking takes a window of more than the {} MiB allowed (made with --long)",
                    (uint64_t{1} << WindowLog()) >> 20);
      }
      return Fail(Code::kCorrupt, "{}", ZSTD_getErrorString(code));
    }
    return Step{.taken = in.pos, .made = out.pos, .ended = left == 0};
  }

  Result<> Restart() override {
    if (!context_) return FailErrno(ENOMEM, "zstd");
    ZSTD_DCtx_reset(context_.get(), ZSTD_reset_session_only);
    ZSTD_DCtx_setParameter(context_.get(), ZSTD_d_windowLogMax, WindowLog());
    return {};
  }

 private:
  int WindowLog() const { return static_cast<int>(std::bit_width(memory_)) - 1; }

  const uint64_t memory_;
  const std::unique_ptr<ZSTD_DCtx, FreeContext> context_;
};

}  // namespace

Result<std::unique_ptr<Decoder>> MakeZstdDecoder(uint64_t memory) {
  auto decoder = std::make_unique<ZstdDecoder>(memory);
  TRY(decoder->Restart());
  return decoder;
}

}  // namespace platter::internal
