// bzip2 through its library, which checks the CRC of each block and of the whole. Takes 4 MiB.
#define BZ_NO_STDIO
#include <bzlib.h>

#include <algorithm>
#include <limits>

#include "io/unpack/decoder.h"

// With BZ_NO_STDIO the library's own assertions would come here; Debian's does without.
namespace platter::internal {
namespace {

class Bzip2Decoder final : public Decoder {
 public:
  Bzip2Decoder() = default;
  Bzip2Decoder(const Bzip2Decoder&) = delete;
  Bzip2Decoder& operator=(const Bzip2Decoder&) = delete;
  ~Bzip2Decoder() override { End(); }

  Result<Step> Decode(ConstBytes from, Bytes into) override {
    constexpr size_t kMost = std::numeric_limits<unsigned>::max() / 2;
    from = from.first(std::min(from.size(), kMost));
    into = into.first(std::min(into.size(), kMost));
    stream_.next_in = reinterpret_cast<char*>(const_cast<std::byte*>(from.data()));
    stream_.avail_in = static_cast<unsigned>(from.size());
    stream_.next_out = reinterpret_cast<char*>(into.data());
    stream_.avail_out = static_cast<unsigned>(into.size());
    int result = BZ2_bzDecompress(&stream_);
    switch (result) {
      case BZ_OK:
      case BZ_STREAM_END: break;
      case BZ_DATA_ERROR_MAGIC: return Fail(Code::kCorrupt, "no bzip2 stream starts here");
      case BZ_DATA_ERROR: return Fail(Code::kCorrupt, "invalid data, or a wrong checksum");
      case BZ_MEM_ERROR: return FailErrno(ENOMEM, "bzip2");
      default: return Fail(Code::kCorrupt, "bzip2 error {}", result);
    }
    return Step{.taken = from.size() - stream_.avail_in,
                .made = into.size() - stream_.avail_out,
                .ended = result == BZ_STREAM_END};
  }

  Result<> Restart() override {
    End();
    stream_ = {};
    int result = BZ2_bzDecompressInit(&stream_, 0, 0);
    if (result != BZ_OK) return FailErrno(ENOMEM, "bzip2");
    open_ = true;
    return {};
  }

 private:
  void End() {
    if (open_) BZ2_bzDecompressEnd(&stream_);
    open_ = false;
  }

  bz_stream stream_ = {};
  bool open_ = false;
};

}  // namespace

Result<std::unique_ptr<Decoder>> MakeBzip2Decoder() {
  auto decoder = std::make_unique<Bzip2Decoder>();
  TRY(decoder->Restart());
  return decoder;
}

}  // namespace platter::internal
