// zstd with reused contexts: one for each Compressor, one for each thread that decompresses.
#include "io/codec/zstd_codec.h"

#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <array>

#include "base/endian.h"
#include "base/math.h"

namespace platter::internal {
namespace {

struct FreeCompressor {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};
struct FreeDecompressor {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

class ZstdCompressor final : public Compressor {
 public:
  explicit ZstdCompressor(std::unique_ptr<ZSTD_CCtx, FreeCompressor> context)
      : context_(std::move(context)) {}

  size_t Compress(ConstBytes from, Bytes into) override {
    size_t used =
        ZSTD_compress2(context_.get(), into.data(), into.size(), from.data(), from.size());
    // It does not fit, or memory ran out: the caller stores the unit as it is.
    return ZSTD_isError(used) ? 0 : used;
  }

 private:
  std::unique_ptr<ZSTD_CCtx, FreeCompressor> context_;
};

// What a stream that is not read in one piece may make us allocate. A frame that fills at most one
// unit never needs it: see Unzstd.
constexpr int kMaxWindowLog = 23;

ZSTD_DCtx* ThreadDecompressor() {
  thread_local std::unique_ptr<ZSTD_DCtx, FreeDecompressor> context = [] {
    std::unique_ptr<ZSTD_DCtx, FreeDecompressor> made(ZSTD_createDCtx());
    if (made) ZSTD_DCtx_setParameter(made.get(), ZSTD_d_windowLogMax, kMaxWindowLog);
    return made;
  }();
  return context.get();
}

bool StartsLikeZstd(ConstBytes from) {
  auto magic = LoadAt<le32>(from, 0);
  if (!magic) return false;
  return *magic == ZSTD_MAGICNUMBER ||
         (*magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
}

bool IsFatal(size_t result) {
  ZSTD_ErrorCode code = ZSTD_getErrorCode(result);
  return code != ZSTD_error_dstSize_tooSmall && code != ZSTD_error_srcSize_wrong;
}

// The unusual streams: several frames, skippable ones, a frame longer than the unit or cut off
// behind it. Memory is bounded by kMaxWindowLog, time by the input and the unit.
Result<size_t> UnzstdStream(ZSTD_DCtx* context, ConstBytes from, Bytes into) {
  ZSTD_DCtx_reset(context, ZSTD_reset_session_only);
  ZSTD_inBuffer in{from.data(), from.size(), 0};
  ZSTD_outBuffer out{into.data(), into.size(), 0};
  bool frame_done = false;
  while (out.pos < out.size) {
    size_t in_before = in.pos, out_before = out.pos;
    size_t result = ZSTD_decompressStream(context, &out, &in);
    if (ZSTD_isError(result)) {
      return Fail(Code::kCorrupt, "zstd: {} (after {} of {} bytes)", ZSTD_getErrorName(result),
                  out.pos, out.size);
    }
    frame_done = result == 0;
    if (in.pos == in_before && out.pos == out_before) {
      return Fail(Code::kCorrupt, "zstd: the stream is cut off (after {} of {} bytes)", out.pos,
                  out.size);
    }
  }
  // The unit is full; what is left of its frame (an empty last block, a checksum) is still its own.
  if (!frame_done) {
    size_t result = ZSTD_decompressStream(context, &out, &in);
    if (ZSTD_isError(result) && ZSTD_getErrorCode(result) == ZSTD_error_checksum_wrong) {
      return Fail(Code::kCorrupt, "zstd: {}", ZSTD_getErrorName(result));
    }
  }
  return in.pos;
}

}  // namespace

namespace {

constexpr int kDefaultLevel = 2;
// For each of our levels zstd's, and the MiB that its tables take at most.
struct Level {
  int level;
  uint64_t mib;
};
constexpr std::array<Level, 10> kLevels = {
    {{}, {1, 1}, {2, 1}, {3, 2}, {5, 4}, {7, 7}, {9, 13}, {12, 25}, {15, 33}, {19, 34}}};

const Level& LevelOf(const Compressor::Options& options) {
  return kLevels[static_cast<size_t>(options.level == 0 ? kDefaultLevel : options.level)];
}

}  // namespace

uint64_t ZstdMemory(const Compressor::Options& options, uint64_t unit) {
  // Tables are made no larger than a unit has use for.
  return std::min(LevelOf(options).mib * kMiB, 28 * unit);
}

Result<std::unique_ptr<Compressor>> MakeZstd(const Compressor::Options& options) {
  std::unique_ptr<ZSTD_CCtx, FreeCompressor> context(ZSTD_createCCtx());
  if (!context) return Fail(Code::kIo, "zstd: out of memory");
  size_t result =
      ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, LevelOf(options).level);
  if (ZSTD_isError(result)) {
    return Fail(Code::kUnsupported, "zstd level {}: {}", options.level, ZSTD_getErrorName(result));
  }
  return std::make_unique<ZstdCompressor>(std::move(context));
}

Result<size_t> Unzstd(ConstBytes from, Bytes into) {
  if (!StartsLikeZstd(from)) return Fail(Code::kCorrupt, "zstd: no frame at the start");
  ZSTD_DCtx* context = ThreadDecompressor();
  if (!context) return Fail(Code::kIo, "zstd: out of memory");
  // The usual case, one frame that is the unit: straight into place, which needs no window buffer,
  // whatever window the frame asks for.
  size_t frame = ZSTD_findFrameCompressedSize(from.data(), from.size());
  if (!ZSTD_isError(frame)) {
    size_t made = ZSTD_decompressDCtx(context, into.data(), into.size(), from.data(), frame);
    if (made == into.size()) return frame;
    if (ZSTD_isError(made) && IsFatal(made)) {
      return Fail(Code::kCorrupt, "zstd: {}", ZSTD_getErrorName(made));
    }
  }
  return UnzstdStream(context, from, into);
}

}  // namespace platter::internal
