// Turns literals and matches into deflate blocks (RFC 1951, section 3.2). Private to io/codec.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"

namespace platter::internal {

// A literal: its byte, distance 0. Or a match: kMatch + its length (3..258), and its distance. One
// table indexed by `value` then has the code of either.
struct Token {
  uint16_t value;
  uint16_t distance;
};
constexpr uint32_t kMatch = 256;
constexpr uint32_t kMinMatch = 3, kMaxMatch = 258;

// 0..255 literals, 256 end of block, 257..285 lengths; the last two occur in no block, but take
// their places in the fixed code.
constexpr size_t kLengthSymbols = 288;
constexpr size_t kDistanceSymbols = 30;
// The code for each symbol: `bits` is reversed, ready to be written; length 0: the symbol has none.
struct HuffmanCode {
  uint16_t bits;
  uint8_t length;
};

// Shortest lengths of at most `limit` bits for symbols that occur counts[i] times. Where fewer than
// two symbols occur, two get one bit all the same: a code of one symbol is incomplete, which some
// decoders do not take.
void MakeHuffmanLengths(std::span<const uint32_t> counts, uint32_t limit,
                        std::span<uint8_t> lengths);

// Canonical codes for `lengths`.
void MakeHuffmanCodes(std::span<const uint8_t> lengths, std::span<HuffmanCode> codes);

class DeflateBlockWriter {
 public:
  // Starts a stream of at most `limit` bytes.
  void Begin(size_t limit);
  // Writes a block: `tokens` say what `plain` says; whichever of the three block types is smallest.
  // False if the stream became longer than the limit; what was written is then void.
  bool Write(std::span<const Token> tokens, ConstBytes plain, bool last);
  // Fills up the last byte; the stream.
  ConstBytes Finish();

 private:
  struct Header;

  // The end of the stream: bits that are not written yet, and where they go.
  struct Sink {
    uint64_t held = 0;
    uint32_t count = 0;
    std::byte* at = nullptr;

    void Put(uint64_t bits, uint32_t bit_count);
    void Align();
  };

  void Count(std::span<const Token> tokens);
  Header MakeHeader() const;
  void PutHeader(const Header& header);
  void MakeTokenCodes();
  void PutTokens(std::span<const Token> tokens);
  void PutStored(ConstBytes plain, bool last);

  std::vector<std::byte> out_;  // the limit and room for one write more
  size_t limit_ = 0;
  Sink sink_;
  std::array<uint32_t, kLengthSymbols> length_counts_;
  std::array<uint32_t, kDistanceSymbols> distance_counts_;
  std::array<uint8_t, kLengthSymbols> length_lengths_;
  std::array<uint8_t, kDistanceSymbols> distance_lengths_;
  std::array<HuffmanCode, kLengthSymbols> length_codes_;
  // The bits for each Token::value: a literal's code; a length's code and extra bits.
  struct Prefix {
    uint32_t bits;
    uint32_t count;
  };
  std::array<Prefix, kMatch + kMaxMatch + 1> prefixes_;
  // And for each symbol of a distance; the last for none.
  struct Suffix {
    uint16_t code;
    uint16_t base;  // the distance that extra bits are counted from
    uint8_t code_bits;
    uint8_t count;  // of the code's bits and the extra bits
  };
  std::array<Suffix, kDistanceSymbols + 1> suffixes_;
  std::array<HuffmanCode, kDistanceSymbols> distance_codes_;
};

}  // namespace platter::internal
