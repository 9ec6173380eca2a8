#include "io/codec/deflate_block.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace platter::internal {
namespace {

constexpr uint32_t kMaxCodeBits = 15;
constexpr uint32_t kMaxHeaderCodeBits = 7;
constexpr size_t kEndOfBlock = 256;
constexpr size_t kHeaderSymbols = 19;

struct Base {
  uint16_t base;
  uint8_t extra;  // bits
};
// Section 3.2.5.
constexpr std::array<Base, 29> kLengthBases = {{
    {3, 0},  {4, 0},  {5, 0},  {6, 0},   {7, 0},   {8, 0},   {9, 0},   {10, 0},  {11, 1},  {13, 1},
    {15, 1}, {17, 1}, {19, 2}, {23, 2},  {27, 2},  {31, 2},  {35, 3},  {43, 3},  {51, 3},  {59, 3},
    {67, 4}, {83, 4}, {99, 4}, {115, 4}, {131, 5}, {163, 5}, {195, 5}, {227, 5}, {258, 0},
}};
// The one behind the last is for tokens that have no distance.
constexpr std::array<Base, kDistanceSymbols + 1> kDistanceBases = {{
    {1, 0},      {2, 0},      {3, 0},     {4, 0},     {5, 1},     {7, 1},     {9, 2},
    {13, 2},     {17, 3},     {25, 3},    {33, 4},    {49, 4},    {65, 5},    {97, 5},
    {129, 6},    {193, 6},    {257, 7},   {385, 7},   {513, 8},   {769, 8},   {1025, 9},
    {1537, 9},   {2049, 10},  {3073, 10}, {4097, 11}, {6145, 11}, {8193, 12}, {12289, 12},
    {16385, 13}, {24577, 13}, {0, 0},
}};

constexpr std::array<uint8_t, kMaxMatch + 1> kLengthSymbol = [] {
  std::array<uint8_t, kMaxMatch + 1> table = {};
  for (size_t symbol = 0; symbol < kLengthBases.size(); ++symbol) {
    size_t end = symbol + 1 < kLengthBases.size() ? kLengthBases[symbol + 1].base : kMaxMatch + 1;
    for (size_t length = kLengthBases[symbol].base; length < end; ++length) {
      table[length] = static_cast<uint8_t>(symbol);
    }
  }
  return table;
}();

// kDistanceSymbols for distance 0, which is none. Small distances by themselves, others (always
// from 257 on) by their upper bits.
constexpr auto kDistanceSymbol = [] {
  std::array<uint8_t, 513 + 256> table = {};
  size_t symbol = 0;
  auto find = [&](size_t distance) {
    while (symbol + 1 < kDistanceSymbols && distance >= kDistanceBases[symbol + 1].base) ++symbol;
    return static_cast<uint8_t>(symbol);
  };
  table[0] = kDistanceSymbols;
  for (size_t distance = 1; distance <= 512; ++distance) table[distance] = find(distance);
  for (size_t upper = 4; upper < 256; ++upper) table[513 + upper] = find(upper * 128 + 1);
  return table;
}();
inline uint32_t DistanceSymbol(uint32_t distance) {
  return kDistanceSymbol[distance <= 512 ? distance : 513 + ((distance - 1) >> 7)];
}

// Section 3.2.7: the order in which the lengths of the header's own code are written.
constexpr std::array<uint8_t, kHeaderSymbols> kHeaderOrder = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                                              11, 4,  12, 3, 13, 2, 14, 1, 15};

// What MakeHuffmanLengths sorts: a symbol below its weight.
constexpr uint32_t kSymbolBits = 9, kSymbolMask = (1u << kSymbolBits) - 1;

// Ascending by weight, and as before where weights agree. Digit by digit: a comparing sort of the
// few hundred took a sixteenth of the encoder's time.
void SortByWeight(std::span<uint32_t> numbers) {
  constexpr uint32_t kDigitBits = 7, kDigitMask = (1u << kDigitBits) - 1;
  std::array<uint32_t, kLengthSymbols> room;
  uint32_t *from = numbers.data(), *to = room.data(), all = 0;
  for (uint32_t number : numbers) all |= number;
  for (uint32_t shift = kSymbolBits; shift < 32 && all >> shift != 0; shift += kDigitBits) {
    std::array<uint16_t, kDigitMask + 1> place = {};
    for (size_t i = 0; i < numbers.size(); ++i) ++place[from[i] >> shift & kDigitMask];
    uint16_t sum = 0;
    for (uint16_t& each : place) sum = static_cast<uint16_t>(sum + std::exchange(each, sum));
    for (size_t i = 0; i < numbers.size(); ++i)
      to[place[from[i] >> shift & kDigitMask]++] = from[i];
    std::swap(from, to);
  }
  if (from != numbers.data()) std::copy_n(from, numbers.size(), numbers.data());
}

// Replaces ascending weights by the lengths of an optimal code, in place (Moffat and Katajainen:
// "In-Place Calculation of Minimum-Redundancy Codes", 1995). At least two weights.
void WeightsToLengths(std::span<uint32_t> a) {
  size_t n = a.size(), root = 0, leaf = 2;
  a[0] += a[1];
  for (size_t next = 1; next + 1 < n; ++next) {
    auto take = [&] {
      if (leaf >= n || (root < next && a[root] < a[leaf])) {
        uint32_t weight = a[root];
        a[root++] = static_cast<uint32_t>(next);
        return weight;
      }
      return a[leaf++];
    };
    uint32_t first = take();
    a[next] = first + take();
  }
  a[n - 2] = 0;
  for (size_t next = n - 2; next-- > 0;) a[next] = a[a[next]] + 1;
  ptrdiff_t inner = static_cast<ptrdiff_t>(n) - 2, at = static_cast<ptrdiff_t>(n) - 1;
  for (uint32_t available = 1, depth = 0; available > 0; ++depth) {
    uint32_t used = 0;
    while (inner >= 0 && a[static_cast<size_t>(inner)] == depth) ++used, --inner;
    for (; available > used; --available) a[static_cast<size_t>(at--)] = depth;
    available = 2 * used;
  }
}

// Shortens codes longer than `limit`: cut them, then lengthen the longest of the shorter codes
// until the Kraft sum is one again. count[i]: how many symbols have i bits.
void LimitLengths(std::span<uint32_t> count, uint32_t limit) {
  uint64_t sum = 0;
  for (size_t i = limit + 1; i < count.size(); ++i) {
    count[limit] += count[i];
    count[i] = 0;
  }
  for (uint32_t i = 1; i <= limit; ++i) sum += uint64_t{count[i]} << (limit - i);
  for (; sum > uint64_t{1} << limit; --sum) {
    uint32_t i = limit - 1;
    while (count[i] == 0) --i;
    // One code of i bits becomes two of i + 1: for itself and for one of the longest.
    --count[i];
    count[i + 1] += 2;
    --count[limit];
  }
}

}  // namespace

void MakeHuffmanLengths(std::span<const uint32_t> counts, uint32_t limit,
                        std::span<uint8_t> lengths) {
  std::ranges::fill(lengths, uint8_t{0});
  // Weight and symbol in one number, ascending by symbol.
  std::array<uint32_t, kLengthSymbols> sorted, weights;
  size_t n = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] > 0) sorted[n++] = counts[i] << kSymbolBits | static_cast<uint32_t>(i);
  }
  if (n < 2) {
    size_t symbol = n == 1 ? sorted[0] & kSymbolMask : 0;
    lengths[symbol] = lengths[symbol == 0 ? 1 : 0] = 1;
    return;
  }
  SortByWeight(std::span(sorted).first(n));
  for (size_t i = 0; i < n; ++i) weights[i] = sorted[i] >> kSymbolBits;
  WeightsToLengths(std::span(weights).first(n));
  if (weights[0] <= limit) {
    for (size_t i = 0; i < n; ++i)
      lengths[sorted[i] & kSymbolMask] = static_cast<uint8_t>(weights[i]);
    return;
  }
  std::array<uint32_t, kLengthSymbols> count = {};
  for (size_t i = 0; i < n; ++i) ++count[weights[i]];
  LimitLengths(count, limit);
  size_t at = 0;
  for (uint32_t length = limit; length > 0; --length) {
    for (uint32_t k = 0; k < count[length]; ++k) {
      lengths[sorted[at++] & kSymbolMask] = static_cast<uint8_t>(length);
    }
  }
}

namespace {
uint32_t Reverse16(uint32_t bits) {
  bits = (bits & 0x5555) << 1 | (bits >> 1 & 0x5555);
  bits = (bits & 0x3333) << 2 | (bits >> 2 & 0x3333);
  bits = (bits & 0x0f0f) << 4 | (bits >> 4 & 0x0f0f);
  return (bits & 0x00ff) << 8 | bits >> 8;
}
}  // namespace

void MakeHuffmanCodes(std::span<const uint8_t> lengths, std::span<HuffmanCode> codes) {
  std::array<uint16_t, kMaxCodeBits + 1> count = {}, next = {};
  for (uint8_t length : lengths) ++count[length];
  count[0] = 0;
  for (size_t i = 1; i <= kMaxCodeBits; ++i) {
    next[i] = static_cast<uint16_t>((next[i - 1] + count[i - 1]) << 1);
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    uint8_t length = lengths[i];
    uint32_t code = length ? next[length]++ : 0;
    codes[i] = {static_cast<uint16_t>(Reverse16(code) >> (16 - length)), length};
  }
}

// The description of a dynamic block's two codes, run-length coded (section 3.2.7).
struct DeflateBlockWriter::Header {
  struct Item {
    uint8_t symbol;
    uint8_t extra;
  };
  std::array<Item, kLengthSymbols + kDistanceSymbols> items;
  size_t count = 0;
  size_t length_codes, distance_codes, header_codes;
  std::array<uint8_t, kHeaderSymbols> lengths;
  std::array<HuffmanCode, kHeaderSymbols> codes;
  uint64_t bits = 0;  // of all of it, the block's three bits included
};

namespace {
uint32_t ExtraBits(uint8_t header_symbol) {
  return header_symbol == 16 ? 2 : header_symbol == 17 ? 3 : header_symbol == 18 ? 7 : 0;
}
}  // namespace

void DeflateBlockWriter::Begin(size_t limit) {
  limit_ = limit;
  if (out_.size() < limit + sizeof sink_.held) out_.resize(limit + sizeof sink_.held);
  sink_ = {.at = out_.data()};
}

// At most 56 bits; the caller knows that they stay below the limit. Writes eight bytes, of which
// the next call writes those again that are not full yet.
inline void DeflateBlockWriter::Sink::Put(uint64_t bits, uint32_t bit_count) {
  held |= bits << count;
  count += bit_count;
  std::memcpy(at, &held, sizeof held);
  at += count / 8;
  held >>= count & ~7u;
  count &= 7;
}

inline void DeflateBlockWriter::Sink::Align() {
  if (count > 0) Put(0, 8 - count);
}

void DeflateBlockWriter::Count(std::span<const Token> tokens) {
  // By Token::value first: no branch on what a token is, which is hard to predict. And in turns, so
  // that an increment need not wait for the one before it, often of the same counter.
  constexpr size_t kTurns = 4;
  std::array<std::array<uint32_t, kMatch + kMaxMatch + 1>, kTurns> values = {};
  std::array<std::array<uint32_t, kDistanceSymbols + 1>, kTurns> distances = {};
  auto count = [&](size_t turn, Token token) {
    ++values[turn][token.value];
    ++distances[turn][DistanceSymbol(token.distance)];
  };
  size_t at = 0;
  for (; at + kTurns <= tokens.size(); at += kTurns) {
    for (size_t turn = 0; turn < kTurns; ++turn) count(turn, tokens[at + turn]);
  }
  for (; at < tokens.size(); ++at) count(0, tokens[at]);

  length_counts_ = {};
  distance_counts_ = {};
  for (size_t turn = 0; turn < kTurns; ++turn) {
    for (size_t i = 0; i < 256; ++i) length_counts_[i] += values[turn][i];
    for (size_t length = kMinMatch; length <= kMaxMatch; ++length) {
      length_counts_[257u + kLengthSymbol[length]] += values[turn][kMatch + length];
    }
    for (size_t i = 0; i < kDistanceSymbols; ++i) distance_counts_[i] += distances[turn][i];
  }
  length_counts_[kEndOfBlock] = 1;
}

DeflateBlockWriter::Header DeflateBlockWriter::MakeHeader() const {
  Header header;
  auto used = [](std::span<const uint8_t> lengths, size_t least) {
    size_t n = lengths.size();
    while (n > least && lengths[n - 1] == 0) --n;
    return n;
  };
  header.length_codes = used(length_lengths_, 257);
  header.distance_codes = used(distance_lengths_, 1);
  std::array<uint8_t, kLengthSymbols + kDistanceSymbols> all;
  auto end = std::copy_n(length_lengths_.begin(), header.length_codes, all.begin());
  std::copy_n(distance_lengths_.begin(), header.distance_codes, end);
  size_t total = header.length_codes + header.distance_codes;

  std::array<uint32_t, kHeaderSymbols> counts = {};
  auto add = [&](size_t symbol, size_t extra) {
    header.items[header.count++] = {static_cast<uint8_t>(symbol), static_cast<uint8_t>(extra)};
    ++counts[symbol];
  };
  for (size_t at = 0; at < total;) {
    uint8_t length = all[at];
    size_t run = 1;
    while (at + run < total && all[at + run] == length) ++run;
    at += run;
    if (length != 0) {
      add(length, 0);
      --run;
      for (; run >= 3; run -= std::min<size_t>(run, 6)) add(16, std::min<size_t>(run, 6) - 3);
    } else {
      for (; run >= 11; run -= std::min<size_t>(run, 138)) add(18, std::min<size_t>(run, 138) - 11);
      if (run >= 3) {
        add(17, run - 3);
        run = 0;
      }
    }
    for (; run > 0; --run) add(length, 0);
  }
  MakeHuffmanLengths(counts, kMaxHeaderCodeBits, header.lengths);
  MakeHuffmanCodes(header.lengths, header.codes);
  header.header_codes = kHeaderSymbols;
  while (header.header_codes > 4 && header.lengths[kHeaderOrder[header.header_codes - 1]] == 0) {
    --header.header_codes;
  }
  header.bits = 3 + 5 + 5 + 4 + 3 * header.header_codes;
  for (uint8_t symbol = 0; symbol < kHeaderSymbols; ++symbol) {
    header.bits += uint64_t{counts[symbol]} * (header.lengths[symbol] + ExtraBits(symbol));
  }
  return header;
}

void DeflateBlockWriter::PutHeader(const Header& header) {
  sink_.Put(header.length_codes - 257, 5);
  sink_.Put(header.distance_codes - 1, 5);
  sink_.Put(header.header_codes - 4, 4);
  for (size_t i = 0; i < header.header_codes; ++i) sink_.Put(header.lengths[kHeaderOrder[i]], 3);
  for (size_t i = 0; i < header.count; ++i) {
    auto [symbol, extra] = header.items[i];
    sink_.Put(header.codes[symbol].bits, header.codes[symbol].length);
    sink_.Put(extra, ExtraBits(symbol));
  }
}

void DeflateBlockWriter::MakeTokenCodes() {
  for (size_t i = 0; i < 256; ++i) prefixes_[i] = {length_codes_[i].bits, length_codes_[i].length};
  for (size_t length = kMinMatch; length <= kMaxMatch; ++length) {
    size_t symbol = kLengthSymbol[length];
    HuffmanCode code = length_codes_[257 + symbol];
    uint32_t extra = static_cast<uint32_t>(length) - kLengthBases[symbol].base;
    prefixes_[kMatch + length] = {code.bits | extra << code.length,
                                  uint32_t{code.length} + kLengthBases[symbol].extra};
  }
  for (size_t i = 0; i < kDistanceSymbols; ++i) {
    HuffmanCode code = distance_codes_[i];
    suffixes_[i] = {code.bits, kDistanceBases[i].base, code.length,
                    static_cast<uint8_t>(code.length + kDistanceBases[i].extra)};
  }
  suffixes_[kDistanceSymbols] = {};
}

void DeflateBlockWriter::PutTokens(std::span<const Token> tokens) {
  Sink sink = sink_;  // in registers: bytes written may not be taken for a change of ours
  for (Token token : tokens) {
    // A literal takes the same way, with an empty code for its distance.
    Prefix prefix = prefixes_[token.value];
    uint32_t symbol = DistanceSymbol(token.distance);
    Suffix suffix = suffixes_[symbol];
    uint64_t extra = uint32_t{token.distance} - suffix.base;
    uint64_t bits = suffix.code | extra << suffix.code_bits;
    bits = prefix.bits | bits << prefix.count;
    uint32_t count = prefix.count + suffix.count;
    sink.Put(bits, count);  // 15 + 5 + 15 + 13 at most
  }
  sink.Put(length_codes_[kEndOfBlock].bits, length_codes_[kEndOfBlock].length);
  sink_ = sink;
}

// Section 3.2.4, in pieces of what 16 bits can count.
void DeflateBlockWriter::PutStored(ConstBytes plain, bool last) {
  do {
    ConstBytes piece = plain.first(std::min<size_t>(plain.size(), 65535));
    plain = plain.subspan(piece.size());
    sink_.Put(last && plain.empty() ? 1 : 0, 3);
    sink_.Align();
    sink_.Put(piece.size() | (~piece.size() & 0xffff) << 16, 32);
    sink_.at = std::ranges::copy(piece, sink_.at).out;
  } while (!plain.empty());
}

bool DeflateBlockWriter::Write(std::span<const Token> tokens, ConstBytes plain, bool last) {
  Count(tokens);
  MakeHuffmanLengths(length_counts_, kMaxCodeBits, length_lengths_);
  MakeHuffmanLengths(distance_counts_, kMaxCodeBits, distance_lengths_);
  Header header = MakeHeader();

  uint64_t extra = 0, dynamic = header.bits, fixed = 3;
  auto fixed_length = [](size_t symbol) {
    return symbol < 144 ? 8u : symbol < 256 ? 9u : symbol < 280 ? 7u : 8u;
  };
  for (size_t i = 0; i < kLengthSymbols; ++i) {
    if (i > kEndOfBlock && i - 257 < kLengthBases.size())
      extra += uint64_t{length_counts_[i]} * kLengthBases[i - 257].extra;
    dynamic += uint64_t{length_counts_[i]} * length_lengths_[i];
    fixed += uint64_t{length_counts_[i]} * fixed_length(i);
  }
  for (size_t i = 0; i < kDistanceSymbols; ++i) {
    extra += uint64_t{distance_counts_[i]} * kDistanceBases[i].extra;
    dynamic += uint64_t{distance_counts_[i]} * distance_lengths_[i];
    fixed += uint64_t{distance_counts_[i]} * 5;
  }
  dynamic += extra;
  fixed += extra;
  // Up to 10 bits to the next byte, and 4 bytes, for each piece.
  uint64_t stored = 8 * plain.size() + (plain.size() / 65535 + 1) * 42;
  uint64_t smallest = std::min({dynamic, fixed, stored});
  size_t used = static_cast<size_t>(sink_.at - out_.data());
  if (used + (sink_.count + smallest + 7) / 8 > limit_) return false;

  if (smallest == stored) {
    PutStored(plain, last);
    return true;
  }
  if (smallest == fixed) {
    for (size_t i = 0; i < kLengthSymbols; ++i) {
      length_lengths_[i] = static_cast<uint8_t>(fixed_length(i));
    }
    std::ranges::fill(distance_lengths_, uint8_t{5});
  }
  MakeHuffmanCodes(length_lengths_, length_codes_);
  MakeHuffmanCodes(distance_lengths_, distance_codes_);
  MakeTokenCodes();
  sink_.Put((last ? 1 : 0) | (smallest == fixed ? 1 : 2) << 1, 3);
  if (smallest != fixed) PutHeader(header);
  PutTokens(tokens);
  return true;
}

ConstBytes DeflateBlockWriter::Finish() {
  sink_.Align();
  return ConstBytes(out_).first(static_cast<size_t>(sink_.at - out_.data()));
}

}  // namespace platter::internal
