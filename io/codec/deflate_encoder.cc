// Why an encoder of our own: with qcow2's 4 KiB window ISA-L's best level makes 6 to 7 % more than
// zlib's default and knows no better; zlib is five times too slow; other fast encoders cannot be
// told a window. A window of 4 KiB also makes matching cheap: a hash bucket of the two or four
// latest places holds nearly all that are worth trying, in 64 or 128 KiB of tables.
//
// Positions are kept modulo 65536. An entry that is older than that looks like a near one; it is
// then tried, and is a match only where the bytes say so. So any number in the table is harmless,
// and clearing it for each unit serves only to make the output depend on nothing but the input.
#include "io/codec/deflate_encoder.h"

#include <isa-l.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "base/endian.h"
#include "io/codec/deflate_block.h"

namespace platter::internal {
namespace {

static_assert(std::endian::native == std::endian::little, "MatchLength counts low zero bits");

struct Strategy {
  size_t places;       // in a hash bucket
  uint32_t try_later;  // a match shorter than this may give way to a longer one a byte later
  uint32_t stride;     // of the places that a match covers every so many-th is entered
};
constexpr Strategy StrategyOf(Effort effort) {
  switch (effort) {
    case Effort::kGreedy: return {2, 0, 2};
    case Effort::kLazy: return {2, 10, 1};
    case Effort::kThorough: return {4, 32, 1};
  }
}

// Of a hash, for a window of at most 4 KiB and for a larger one.
constexpr uint32_t kHashBits = 14, kHashBitsLarge = 15;
// What the hash covers, and the shortest match we look for: those of 3 save next to nothing.
constexpr uint32_t kHashed = 4;
// A match this long is not compared with others.
constexpr uint32_t kLongEnough = 64;
// So close to the end nothing is looked for, so that eight bytes may be read anywhere before.
constexpr uint32_t kTail = 8;
// Tokens to a block: a new code pays for its description of some 60 bytes.
constexpr size_t kBlockTokens = 8000;
// Each 64 positions without a match make us look less often by one byte more, up to this: data that
// does not compress is passed over quickly.
constexpr uint32_t kMissShift = 6, kMaxStep = 32;

template <class T>
T Load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// How many bytes at `a` and `b` agree, from `known` on, at most `most`.
inline uint32_t MatchLength(const uint8_t* a, const uint8_t* b, uint32_t known, uint32_t most) {
  uint32_t n = known;
  for (; n + 8 <= most; n += 8) {
    uint64_t differs = Load<uint64_t>(a + n) ^ Load<uint64_t>(b + n);
    if (differs) return n + static_cast<uint32_t>(std::countr_zero(differs)) / 8;
  }
  while (n < most && a[n] == b[n]) ++n;
  return n;
}

struct Match {
  uint32_t length = kHashed - 1;  // less than kHashed: none
  uint32_t distance = 0;
};

template <Effort kEffort>
class DeflateEncoder final : public Compressor {
 public:
  explicit DeflateEncoder(const Options& options)
      : window_bits_(options.window_bits),
        wrapper_(options.id == Codec::kZlib),
        hash_shift_(32 - (options.window_bits > 12 ? kHashBitsLarge : kHashBits)),
        buckets_(size_t{1} << (32 - hash_shift_)),
        // A step of the parser adds a few more after the block is found to be full.
        tokens_(kBlockTokens + kMaxStep + kStrategy.try_later + kTail + 2) {}

  size_t Compress(ConstBytes from, Bytes into) override {
    CHECK(from.size() <= std::numeric_limits<uint32_t>::max() - kMaxMatch);
    constexpr size_t kWrapper = 2 + 4;  // RFC 1950: header and Adler-32
    size_t around = wrapper_ ? kWrapper : 0;
    if (into.size() <= around) return 0;
    if (!Parse(from, into.size() - around)) return 0;
    ConstBytes stream = writer_.Finish();
    std::ranges::copy(stream, into.begin() + (wrapper_ ? 2 : 0));
    if (wrapper_) Wrap(from, into.first(stream.size() + around));
    return stream.size() + around;
  }

 private:
  static constexpr Strategy kStrategy = StrategyOf(kEffort);
  // The latest places of one hash, 16 bits each, the latest lowest.
  using Bucket = std::conditional_t<kStrategy.places == 2, uint32_t, uint64_t>;

  uint32_t Hash(uint32_t four_bytes) const {
    return four_bytes * 0x9e3779b1u >> hash_shift_;  // 2^32 by the golden ratio
  }

  void Insert(uint32_t at) {
    Bucket& bucket = buckets_[Hash(Load<uint32_t>(data_ + at))];
    bucket = bucket << 16 | static_cast<uint16_t>(at);
  }

  // Enters `at`, and returns the longest match there that is longer than `found`, or `found`.
  Match FindAndInsert(uint32_t at, Match found) {
    const uint8_t* here = data_ + at;
    uint32_t four = Load<uint32_t>(here);
    Bucket& bucket = buckets_[Hash(four)];
    Bucket places = bucket;
    bucket = bucket << 16 | static_cast<uint16_t>(at);
    uint32_t farthest = std::min(1u << window_bits_, at), most = std::min(kMaxMatch, size_ - at);
    for (size_t i = 0; i < kStrategy.places; ++i, places >>= 16) {
      uint32_t distance = static_cast<uint16_t>(at - static_cast<uint32_t>(places));
      if (distance - 1 >= farthest) break;  // also 0; those behind it are older still
      const uint8_t* there = here - distance;
      if (Load<uint32_t>(there) != four) continue;
      if (found.length >= kHashed) {
        // Whether it is longer shows first at its end.
        if (found.length >= most) break;
        uint32_t end = found.length - 3;
        if (Load<uint32_t>(there + end) != Load<uint32_t>(here + end)) continue;
      }
      uint32_t length = MatchLength(here, there, kHashed, most);
      if (length <= found.length) continue;
      found = {length, distance};
      if (length >= kLongEnough) break;
    }
    return found;
  }

  bool Flush(bool last) {
    ConstBytes plain(reinterpret_cast<const std::byte*>(data_) + block_begin_, at_ - block_begin_);
    bool fits = writer_.Write(std::span(tokens_).first(token_count_), plain, last);
    token_count_ = 0;
    block_begin_ = at_;
    return fits;
  }

  void AddLiteral() { tokens_[token_count_++] = {data_[at_++], 0}; }

  // Takes the match at `at_`, or a longer one shortly after it, and enters the places it covers.
  void TakeMatch(Match match, uint32_t searched_end) {
    uint32_t entered = at_ + 1;
    while (match.length < kStrategy.try_later && at_ + 1 < searched_end) {
      Match later = FindAndInsert(at_ + 1, match);
      entered = at_ + 2;
      if (later.length == match.length) break;
      AddLiteral();
      match = later;
    }
    tokens_[token_count_++] = {static_cast<uint16_t>(kMatch + match.length),
                               static_cast<uint16_t>(match.distance)};
    at_ += match.length;
    uint32_t end = std::min(at_, searched_end);
    for (; entered < end; entered += kStrategy.stride) Insert(entered);
  }

  bool Parse(ConstBytes from, size_t limit) {
    std::ranges::fill(buckets_, Bucket{0});
    data_ = reinterpret_cast<const uint8_t*>(from.data());
    size_ = static_cast<uint32_t>(from.size());
    at_ = block_begin_ = 0;
    token_count_ = 0;
    writer_.Begin(limit);
    uint32_t searched_end = size_ > kTail ? size_ - kTail : 0, misses = 0;
    while (at_ < searched_end) {
      if (token_count_ >= kBlockTokens && !Flush(false)) return false;
      Match match = FindAndInsert(at_, {});
      if (match.length >= kHashed) {
        misses = 0;
        TakeMatch(match, searched_end);
        continue;
      }
      uint32_t step = std::min(1 + (misses++ >> kMissShift), kMaxStep);
      for (; step > 0 && at_ < searched_end; --step) AddLiteral();
    }
    while (at_ < size_) AddLiteral();
    return Flush(true);
  }

  void Wrap(ConstBytes from, Bytes stream) const {
    unsigned method = 8 | static_cast<unsigned>(window_bits_ - 8) << 4;
    unsigned check = 31 - method * 256 % 31;
    stream[0] = static_cast<std::byte>(method);
    stream[1] = static_cast<std::byte>(check);
    auto* data = reinterpret_cast<const uint8_t*>(from.data());
    uint32_t adler = isal_adler32(1, data, from.size());
    StoreAt(stream, stream.size() - 4, be32(adler));
  }

  const int window_bits_;
  const bool wrapper_;
  const uint32_t hash_shift_;
  std::vector<Bucket> buckets_;
  std::vector<Token> tokens_;
  size_t token_count_ = 0;
  DeflateBlockWriter writer_;
  const uint8_t* data_ = nullptr;
  uint32_t size_ = 0;
  uint32_t at_ = 0;           // the next byte to be said
  uint32_t block_begin_ = 0;  // of the block that is being collected
};

}  // namespace

std::unique_ptr<Compressor> MakeDeflateEncoder(const Compressor::Options& options, Effort effort) {
  switch (effort) {
    case Effort::kGreedy: return std::make_unique<DeflateEncoder<Effort::kGreedy>>(options);
    case Effort::kLazy: return std::make_unique<DeflateEncoder<Effort::kLazy>>(options);
    case Effort::kThorough: return std::make_unique<DeflateEncoder<Effort::kThorough>>(options);
  }
  return nullptr;
}

}  // namespace platter::internal
