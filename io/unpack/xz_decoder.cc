// xz through liblzma, which checks every block's checksum and the stream's index.
#include <algorithm>
#include <array>
#include <cstring>

#include "base/math.h"
#include "io/unpack/lzma.h"

namespace platter::internal {

std::unexpected<Error> LzmaError(lzma_ret code) {
  switch (code) {
    case LZMA_FORMAT_ERROR: return Fail(Code::kCorrupt, "no xz stream starts here");
    case LZMA_OPTIONS_ERROR:
      return Fail(Code::kUnsupported, "options of xz that are not supported");
    case LZMA_UNSUPPORTED_CHECK:
      return Fail(Code::kUnsupported, "a checksum of a kind that is not supported");
    case LZMA_MEM_ERROR: return FailErrno(ENOMEM, "xz");
    default: return Fail(Code::kCorrupt, "invalid data, or a wrong checksum");
  }
}

Result<Decoder::Step> LzmaStep(LzmaStream& stream, ConstBytes from, Bytes into) {
  stream->next_in = reinterpret_cast<const uint8_t*>(from.data());
  stream->avail_in = from.size();
  stream->next_out = reinterpret_cast<uint8_t*>(into.data());
  stream->avail_out = into.size();
  lzma_ret result = lzma_code(stream.get(), LZMA_RUN);
  // LZMA_BUF_ERROR: two calls in a row without progress; the caller sees that from the counts.
  if (result != LZMA_OK && result != LZMA_STREAM_END && result != LZMA_BUF_ERROR) {
    return LzmaError(result);
  }
  return Decoder::Step{.taken = from.size() - stream->avail_in,
                       .made = into.size() - stream->avail_out,
                       .ended = result == LZMA_STREAM_END};
}

namespace {

class XzDecoder final : public Decoder {
 public:
  explicit XzDecoder(uint64_t memory) : memory_(memory) {}

  Result<Step> Decode(ConstBytes from, Bytes into) override {
    auto step = LzmaStep(stream_, from, into);
    if (!step && lzma_memusage(stream_.get()) > memory_) {
      return TooMuchMemory(lzma_memusage(stream_.get()), memory_);
    }
    return step;
  }

  Result<> Restart() override {
    lzma_ret result = lzma_stream_decoder(stream_.get(), memory_, LZMA_TELL_UNSUPPORTED_CHECK);
    if (result != LZMA_OK) return LzmaError(result);
    return {};
  }

 private:
  const uint64_t memory_;
  LzmaStream stream_;
};

class XzBlockDecoder final : public Decoder {
 public:
  XzBlockDecoder(uint64_t unpadded, lzma_check check, uint64_t memory)
      : unpadded_(unpadded), check_(check), memory_(memory) {}

  Result<Step> Decode(ConstBytes from, Bytes into) override {
    if (started_) return LzmaStep(stream_, from, into);
    if (from.empty()) return Step{};
    // Its first byte is the header's length; 0 would be the index.
    const auto first = std::to_integer<uint32_t>(from[0]);
    const size_t size = lzma_block_header_size_decode(first);
    if (first == 0 || size > from.size()) return Fail(Code::kCorrupt, "no block starts here");
    TRY(Start(from.first(size)));
    started_ = true;
    return Step{.taken = size};
  }

  Result<> Restart() override { return Fail(Code::kCorrupt, "the block ends before its length"); }

 private:
  Result<> Start(ConstBytes header) {
    std::array<lzma_filter, LZMA_FILTERS_MAX + 1> filters;
    filters[0] = {LZMA_VLI_UNKNOWN, nullptr};
    block_.version = 1;
    block_.check = check_;
    block_.filters = filters.data();
    block_.header_size = static_cast<uint32_t>(header.size());
    lzma_ret result =
        lzma_block_header_decode(&block_, nullptr, reinterpret_cast<const uint8_t*>(header.data()));
    if (result != LZMA_OK) return LzmaError(result);
    auto started = StartFiltered(filters.data());
    lzma_filters_free(filters.data(), nullptr);
    block_.filters = nullptr;
    return started;
  }

  Result<> StartFiltered(const lzma_filter* filters) {
    lzma_ret result = lzma_block_compressed_size(&block_, unpadded_);
    if (result != LZMA_OK) return LzmaError(result);
    if (!lzma_check_is_supported(check_)) return LzmaError(LZMA_UNSUPPORTED_CHECK);
    uint64_t usage = lzma_raw_decoder_memusage(filters);
    if (usage > memory_) return TooMuchMemory(usage, memory_);
    result = lzma_block_decoder(stream_.get(), &block_);
    if (result != LZMA_OK) return LzmaError(result);
    return {};
  }

  const uint64_t unpadded_;
  const lzma_check check_;
  const uint64_t memory_;
  lzma_block block_ = {};
  LzmaStream stream_;
  bool started_ = false;
};

}  // namespace

std::unique_ptr<Decoder> MakeXzBlockDecoder(uint64_t unpadded, lzma_check check, uint64_t memory) {
  return std::make_unique<XzBlockDecoder>(unpadded, check, memory);
}

Result<std::unique_ptr<Decoder>> MakeXzDecoder(uint64_t memory) {
  auto decoder = std::make_unique<XzDecoder>(memory);
  TRY(decoder->Restart());
  return decoder;
}

}  // namespace platter::internal
