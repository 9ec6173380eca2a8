#include "formats/unit_set.h"

#include <algorithm>
#include <bit>

#include "base/math.h"

namespace platter {

namespace {
constexpr uint64_t kWord = 64;  // bits

// The first bit at or after `from` that is `value`; `end` if there is none before it.
uint64_t FindBit(const std::vector<uint64_t>& bits, uint64_t from, uint64_t end, bool value) {
  while (from < end) {
    uint64_t word = value ? bits[from / kWord] : ~bits[from / kWord];
    word &= ~uint64_t{0} << from % kWord;
    if (word != 0) {
      return std::min(RoundDown(from, kWord) + static_cast<uint64_t>(std::countr_zero(word)), end);
    }
    from = RoundDown(from, kWord) + kWord;
  }
  return end;
}
}  // namespace

void UnitSet::Add(Range units) {
  while (!units.empty()) {
    const uint64_t index = units.offset / kBlock, start = index * kBlock;
    const uint64_t end = std::min(units.end(), start + kBlock);
    count_ += AddToBlock(blocks_[index], units.offset - start, end - start);
    units = Range::FromTo(end, units.end());
  }
}

// How many were new.
uint64_t UnitSet::AddToBlock(Block& block, uint64_t first, uint64_t end) {
  if (block.count == kBlock) return 0;
  if (block.bits.empty()) block.bits.resize(kBlock / kWord);
  const uint64_t before = block.count;
  for (uint64_t at = first; at < end;) {
    const uint64_t stop = std::min(RoundDown(at, kWord) + kWord, end);
    const uint64_t mask = (~uint64_t{0} >> (kWord - (stop - at))) << at % kWord;
    uint64_t& word = block.bits[at / kWord];
    block.count += static_cast<uint64_t>(std::popcount(mask & ~word));
    word |= mask;
    at = stop;
  }
  if (block.count == kBlock) std::vector<uint64_t>().swap(block.bits);
  return block.count - before;
}

bool UnitSet::Has(uint64_t unit) const {
  auto found = blocks_.find(unit / kBlock);
  if (found == blocks_.end()) return false;
  const Block& block = found->second;
  return block.count == kBlock || (block.bits[unit % kBlock / kWord] >> unit % kWord & 1) != 0;
}

Range UnitSet::Next(uint64_t from) const {
  for (auto at = blocks_.lower_bound(from / kBlock); at != blocks_.end(); ++at) {
    const auto& [index, block] = *at;
    const uint64_t start = index * kBlock;
    const uint64_t first = std::max(from, start) - start;
    if (block.count == kBlock) return Range::FromTo(start + first, start + kBlock);
    const uint64_t set = FindBit(block.bits, first, kBlock, true);
    if (set == kBlock) continue;
    return Range::FromTo(start + set, start + FindBit(block.bits, set, kBlock, false));
  }
  return {};
}

}  // namespace platter
