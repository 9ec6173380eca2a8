// Deflate by ISA-L where speed counts most (levels 1 to 3, and all decoding), by zlib where size
// does (level 9), by our own encoder in between (deflate_encoder.cc).
//
// What we write for qcow2 has no match further back than 4 KiB (window_bits 12): all encoders are
// told so, and the tests check every stream byte by byte with a decoder that remembers no more
// than 4 KiB. A decoder given the whole unit at once would never notice: it finds the far bytes in
// its output buffer.
//
// What we read may use the whole 32 KiB window of RFC 1951: more than a 12-bit decoder promises to
// take, never other bytes. ISA-L differs from zlib in one way that shows: it does not reject an
// incomplete Huffman code in a dynamic block header (only an oversubscribed one), as long as the
// stream does not use the codes that are missing. No encoder writes such headers; a stream damaged
// so that it has one decodes, as any other undetected damage does, to bytes that the damage makes.
// Raw deflate has no checksum: either library lets most damage through. The other way round nothing
// is lost: what ISA-L rejects is put before zlib.
#include "io/codec/deflate.h"

#include <isa-l.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "base/check.h"
#include "base/math.h"
#include "io/codec/deflate_encoder.h"

namespace platter::internal {
namespace {

// Both libraries count in 32 bits. Units are at most a few MiB.
constexpr size_t kMaxSpan = std::numeric_limits<uint32_t>::max();

uint8_t* Mutable(ConstBytes bytes) {
  // Both libraries take input through pointers to non-const that they do not write to.
  return const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(bytes.data()));
}
uint8_t* Raw(Bytes bytes) { return reinterpret_cast<uint8_t*>(bytes.data()); }

class IsalDeflate final : public Compressor {
 public:
  IsalDeflate(const Options& options, uint32_t isal_level)
      : level_(isal_level),
        hist_bits_(static_cast<uint16_t>(options.window_bits)),
        wrapper_(options.id == Codec::kZlib ? IGZIP_ZLIB : IGZIP_DEFLATE),
        level_buffer_(kRequired[isal_level] + kTokensPerBlock * sizeof(uint32_t)) {}

  size_t Compress(ConstBytes from, Bytes into) override {
    CHECK(from.size() <= kMaxSpan);
    isal_deflate_stateless_init(&stream_);
    stream_.level = level_;
    stream_.level_buf = level_buffer_.data();
    stream_.level_buf_size = static_cast<uint32_t>(level_buffer_.size());
    stream_.hist_bits = hist_bits_;
    stream_.gzip_flag = wrapper_;
    stream_.end_of_stream = 1;
    stream_.flush = NO_FLUSH;
    stream_.next_in = Mutable(from);
    stream_.avail_in = static_cast<uint32_t>(from.size());
    stream_.next_out = Raw(into);
    stream_.avail_out = static_cast<uint32_t>(std::min(into.size(), kMaxSpan));
    return isal_deflate_stateless(&stream_) == COMP_OK ? stream_.total_out : 0;
  }

 private:
  static constexpr std::array<uint32_t, 4> kRequired = {ISAL_DEF_LVL0_REQ, ISAL_DEF_LVL1_REQ,
                                                        ISAL_DEF_LVL2_REQ, ISAL_DEF_LVL3_REQ};
  // A full buffer of tokens ends a block, and a block has its own Huffman code: 4096 tokens a
  // block give the smallest output on disk content (0.7 % less than one block a 64 KiB unit).
  static constexpr uint32_t kTokensPerBlock = 4096;

  const uint32_t level_;
  const uint16_t hist_bits_;
  const uint16_t wrapper_;
  std::vector<uint8_t> level_buffer_;
  isal_zstream stream_ = {};
};

class ZlibDeflate final : public Compressor {
 public:
  ZlibDeflate() = default;
  ZlibDeflate(const ZlibDeflate&) = delete;
  ~ZlibDeflate() override {
    if (ready_) deflateEnd(&stream_);
  }

  Result<> Init(const Options& options, int zlib_level) {
    int bits = options.id == Codec::kZlib ? options.window_bits : -options.window_bits;
    if (deflateInit2(&stream_, zlib_level, Z_DEFLATED, bits, kMemLevel, Z_DEFAULT_STRATEGY) !=
        Z_OK) {
      return Fail(Code::kIo, "deflate: out of memory");
    }
    ready_ = true;
    return {};
  }

  size_t Compress(ConstBytes from, Bytes into) override {
    CHECK(from.size() <= kMaxSpan);
    if (deflateReset(&stream_) != Z_OK) return 0;
    stream_.next_in = Mutable(from);
    stream_.avail_in = static_cast<uint32_t>(from.size());
    stream_.next_out = Raw(into);
    stream_.avail_out = static_cast<uint32_t>(std::min(into.size(), kMaxSpan));
    return deflate(&stream_, Z_FINISH) == Z_STREAM_END ? stream_.total_out : 0;
  }

 private:
  static constexpr int kMemLevel = 8;  // zlib's default; 9 makes fewer, larger blocks: no smaller

  z_stream stream_ = {};
  bool ready_ = false;
};

// The state is 90 KB, so it lives on the heap, one a thread.
inflate_state& ThreadInflater() {
  thread_local auto state = std::make_unique<inflate_state>();
  return *state;
}

// The second opinion on a raw stream that ISA-L rejects. ISA-L decodes ahead of its output, so that
// damage behind the last byte of a full unit can make it fail where a decoder that stops there
// would not. Rare, hence not fast.
Result<size_t> InflateSlowly(ConstBytes from, Bytes into) {
  z_stream stream = {};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) return Fail(Code::kIo, "deflate: out of memory");
  stream.next_in = Mutable(from);
  stream.avail_in = static_cast<uint32_t>(from.size());
  stream.next_out = Raw(into);
  stream.avail_out = static_cast<uint32_t>(into.size());
  int result = inflate(&stream, Z_FINISH);
  size_t made = stream.total_out;
  // zlib's own word for it, a constant; null where it merely ran out of input.
  const char* problem = stream.msg ? stream.msg : "the stream is cut off";
  inflateEnd(&stream);
  bool good = result == Z_STREAM_END || result == Z_BUF_ERROR || result == Z_OK;
  if (good && made == into.size()) return from.size() - stream.avail_in;
  return Fail(Code::kCorrupt, "deflate: {} (after {} of {} bytes)", problem, made, into.size());
}

// A zlib stream to its end, some of which may lie behind `into`: then, and where ISA-L rejects it.
Result<size_t> InflateZlibSlowly(ConstBytes from, Bytes into) {
  // No unit is followed by more than the rest of a larger one (the last of a disk).
  constexpr size_t kMostBehind = 8 * kMiB;
  z_stream stream = {};
  if (inflateInit2(&stream, MAX_WBITS) != Z_OK) return Fail(Code::kIo, "zlib: out of memory");
  stream.next_in = Mutable(from);
  stream.avail_in = static_cast<uint32_t>(from.size());
  stream.next_out = Raw(into);
  stream.avail_out = static_cast<uint32_t>(into.size());
  std::array<uint8_t, 16 * kKiB> behind;
  int result = Z_OK;
  while ((result = inflate(&stream, Z_NO_FLUSH)) == Z_OK && stream.avail_out == 0 &&
         stream.total_out <= into.size() + kMostBehind) {
    stream.next_out = behind.data();
    stream.avail_out = behind.size();
  }
  size_t made = stream.total_out;
  const char* problem = stream.msg                         ? stream.msg
                        : made > into.size() + kMostBehind ? "the stream goes on"
                                                           : "the stream is cut off";
  inflateEnd(&stream);
  if (result == Z_STREAM_END && made >= into.size()) return from.size() - stream.avail_in;
  if (result == Z_STREAM_END) problem = "the stream ends";
  return Fail(Code::kCorrupt, "zlib: {} (after {} of {} bytes)", problem, made, into.size());
}

}  // namespace

Result<std::unique_ptr<Compressor>> MakeDeflate(const Compressor::Options& wanted) {
  Compressor::Options options = wanted;
  if (options.window_bits == 0) options.window_bits = options.id == Codec::kZlib ? 15 : 12;
  // In the full window a greedy search misses more.
  if (options.level == 0) options.level = options.id == Codec::kZlib ? 5 : 4;
  if (options.window_bits < 9 || options.window_bits > 15) {
    return Fail(Code::kOutOfRange, "deflate window of {} bits is not in 9..15",
                options.window_bits);
  }
  switch (options.level) {
    case 1:
    case 2:
    case 3: return std::make_unique<IsalDeflate>(options, static_cast<uint32_t>(options.level));
    case 4: return MakeDeflateEncoder(options, Effort::kGreedy);
    case 5:
    case 6: return MakeDeflateEncoder(options, Effort::kLazy);
    case 7:
    case 8: return MakeDeflateEncoder(options, Effort::kThorough);
    default: break;
  }
  auto zlib = std::make_unique<ZlibDeflate>();
  TRY(zlib->Init(options, 9));
  return zlib;
}

Result<size_t> Inflate(ConstBytes from, Bytes into) {
  if (into.size() > kMaxSpan) {
    return Fail(Code::kUnsupported, "deflate unit of {} bytes is too large", into.size());
  }
  inflate_state& state = ThreadInflater();
  isal_inflate_init(&state);
  size_t room = std::min(from.size(), kMaxSpan);
  state.next_in = Mutable(from);
  state.avail_in = static_cast<uint32_t>(room);
  state.next_out = Raw(into);
  state.avail_out = static_cast<uint32_t>(into.size());
  int result = isal_inflate_stateless(&state);
  if (result == ISAL_DECOMP_OK && state.total_out < into.size()) {
    return Fail(Code::kCorrupt, "deflate: the stream ends after {} of {} bytes", state.total_out,
                into.size());
  }
  // A full unit is whole, whether its stream ends there, goes on, or lost its end.
  bool full = state.total_out == into.size();
  if (full && result >= 0) return room - state.avail_in;
  return InflateSlowly(from.first(room), into);
}

Result<size_t> InflateZlib(ConstBytes from, Bytes into) {
  if (into.size() > kMaxSpan) {
    return Fail(Code::kUnsupported, "zlib unit of {} bytes is too large", into.size());
  }
  inflate_state& state = ThreadInflater();
  isal_inflate_init(&state);
  state.crc_flag = ISAL_ZLIB;
  size_t room = std::min(from.size(), kMaxSpan);
  state.next_in = Mutable(from);
  state.avail_in = static_cast<uint32_t>(room);
  state.next_out = Raw(into);
  state.avail_out = static_cast<uint32_t>(into.size());
  if (isal_inflate_stateless(&state) == ISAL_DECOMP_OK && state.total_out == into.size()) {
    return room - state.avail_in;
  }
  return InflateZlibSlowly(from.first(room), into);
}

}  // namespace platter::internal
