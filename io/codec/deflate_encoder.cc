// Why an encoder of our own: with qcow2's 4 KiB window ISA-L's best level makes 6 to 7 % more than
// zlib's default and knows no better; zlib is five times too slow; other fast encoders cannot be
// told a window. A window of 4 KiB also makes matching cheap: a hash bucket of the two or four
// latest places holds nearly all that are worth trying, in 64 or 128 KiB of tables.
//
// Positions are kept modulo 65536. An entry that is older than that looks like a near one; it is
// then tried, and is a match only where the bytes say so. Neither that nor the zeros of a cleared
// table name a place before the unit's first byte, which is all that reading there needs. The
// table is cleared for each unit, so that the output depends on nothing but the input.
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
    case Effort::kLazy: return {2, 6, 1};
    case Effort::kThorough: return {4, 32, 1};
  }
}

// Of a hash, for a window of at most 4 KiB and for a larger one.
constexpr uint32_t kHashBits = 14, kHashBitsLarge = 15;
// What the hash covers, and the shortest match we look for: those of 3 save next to nothing.
constexpr uint32_t kHashed = 4;
// A match this long is not compared with others.
constexpr uint32_t kLongEnough = 64;
// Of what a long match covers, so many bytes are entered at either end: runs of one byte are long,
// and all their places say the same.
constexpr uint32_t kEntered = 32;
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

// A unit on its way into tokens. It lives in one function's frame, and everything is inlined there,
// so that its members are registers: memory of tokens and buckets is written all the time, and
// each write could mean a member of an object that others can see.
template <Effort kEffort>
struct Parser {
  static constexpr Strategy kStrategy = StrategyOf(kEffort);
  // The latest places of one hash, 16 bits each, the latest lowest.
  using Bucket = std::conditional_t<kStrategy.places == 2, uint32_t, uint64_t>;

  const uint8_t* data;
  uint32_t size;
  uint32_t searched_end;  // where searching ends
  uint32_t window;        // bytes
  uint32_t hash_shift;
  Bucket* buckets;
  Token* next;
  uint32_t at = 0;  // the next byte to be said

  [[gnu::always_inline]] Bucket& BucketOf(uint32_t four_bytes) {
    return buckets[four_bytes * 0x9e3779b1u >> hash_shift];  // 2^32 by the golden ratio
  }

  [[gnu::always_inline]] void Insert(uint32_t place) {
    Bucket& bucket = BucketOf(Load<uint32_t>(data + place));
    bucket = bucket << 16 | static_cast<uint16_t>(place);
  }

  // Whether the bytes `distance` before `here` begin like `four`, those at `here`. Entries are
  // places before this one, so there is something to be read, also where it is out of the window.
  [[gnu::always_inline]] bool Agrees(const uint8_t* here, uint32_t distance, uint32_t four) const {
    return (Load<uint32_t>(here - distance) == four) & (distance - 1 < window);
  }

  [[gnu::always_inline]] static void TakeLonger(const uint8_t* here, uint32_t distance,
                                                uint32_t most, Match& found) {
    const uint8_t* there = here - distance;
    if (found.length >= kHashed) {
      // Whether it is longer shows first at its end.
      if (found.length >= most) return;
      const uint32_t end = found.length - 3;
      if (Load<uint32_t>(there + end) != Load<uint32_t>(here + end)) return;
    }
    const uint32_t length = MatchLength(here, there, kHashed, most);
    if (length > found.length) found = {length, distance};
  }

  // Enters `place`, and returns the longest match there that is longer than `found`, or `found`.
  // Places are looked at in pairs: that neither agrees is one branch, and the usual case.
  [[gnu::always_inline]] Match FindAndInsert(uint32_t place, Match found) {
    const uint8_t* here = data + place;
    const uint32_t four = Load<uint32_t>(here);
    const uint32_t most = std::min(kMaxMatch, size - place);
    Bucket& bucket = BucketOf(four);
    Bucket places = bucket;
    bucket = bucket << 16 | static_cast<uint16_t>(place);
    for (size_t i = 0; i < kStrategy.places; i += 2) {
      const uint32_t first = static_cast<uint16_t>(place - static_cast<uint32_t>(places));
      places >>= 16;
      const uint32_t second = static_cast<uint16_t>(place - static_cast<uint32_t>(places));
      places >>= 16;
      const bool first_agrees = Agrees(here, first, four);
      const bool second_agrees = Agrees(here, second, four);
      if (!(first_agrees | second_agrees)) continue;
      if (first_agrees) TakeLonger(here, first, most, found);
      if (second_agrees && found.length < kLongEnough) TakeLonger(here, second, most, found);
      if (found.length >= kLongEnough) break;
    }
    return found;
  }

  [[gnu::always_inline]] void AddLiteral() { *next++ = {data[at++], 0}; }

  // Takes the match at `at`, or a longer one shortly after it, and enters the places it covers.
  [[gnu::always_inline]] void TakeMatch(Match match) {
    uint32_t entered = at + 1;
    while (match.length < kStrategy.try_later && at + 1 < searched_end) {
      const Match later = FindAndInsert(at + 1, match);
      entered = at + 2;
      if (later.length == match.length) break;
      AddLiteral();
      match = later;
    }
    *next++ = {static_cast<uint16_t>(kMatch + match.length), static_cast<uint16_t>(match.distance)};
    at += match.length;
    const uint32_t end = std::min(at, searched_end);
    if (end > entered + 2 * kEntered) {
      for (uint32_t stop = entered + kEntered; entered < stop; entered += kStrategy.stride) {
        Insert(entered);
      }
      entered = end - kEntered;
    }
    for (; entered < end; entered += kStrategy.stride) Insert(entered);
  }
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
        tokens_(kBlockTokens + kMaxStep + Parser<kEffort>::kStrategy.try_later + kTail + 2) {}

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
  using Bucket = typename Parser<kEffort>::Bucket;

  bool Parse(ConstBytes from, size_t limit) {
    std::ranges::fill(buckets_, Bucket{0});
    writer_.Begin(limit);
    const auto size = static_cast<uint32_t>(from.size());
    Parser<kEffort> parser{.data = reinterpret_cast<const uint8_t*>(from.data()),
                           .size = size,
                           .searched_end = size > kTail ? size - kTail : 0,
                           .window = 1u << window_bits_,
                           .hash_shift = hash_shift_,
                           .buckets = buckets_.data(),
                           .next = tokens_.data()};
    uint32_t misses = 0, block_begin = 0;
    auto write_block = [&](bool last) {
      ConstBytes plain = from.subspan(block_begin, parser.at - block_begin);
      bool fits = writer_.Write(std::span(tokens_.data(), parser.next), plain, last);
      parser.next = tokens_.data();
      block_begin = parser.at;
      return fits;
    };
    while (parser.at < parser.searched_end) {
      if (parser.next >= &tokens_[kBlockTokens] && !write_block(false)) return false;
      Match match = parser.FindAndInsert(parser.at, {});
      if (match.length >= kHashed) {
        misses = 0;
        parser.TakeMatch(match);
        continue;
      }
      uint32_t step = std::min(1 + (misses++ >> kMissShift), kMaxStep);
      for (; step > 0 && parser.at < parser.searched_end; --step) parser.AddLiteral();
    }
    while (parser.at < size) parser.AddLiteral();
    return write_block(true);
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
  DeflateBlockWriter writer_;
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
