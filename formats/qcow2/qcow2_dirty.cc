#include "formats/qcow2/qcow2_dirty.h"

#include <algorithm>

#include "base/check.h"

namespace platter::qcow2 {

namespace {

bool IsSet(ConstBytes bits, uint64_t at) {
  return (bits[at / 8] >> (at % 8) & std::byte{1}) != std::byte{0};
}

// The first bit from `at` on that is `value`; `end` if there is none before it.
uint64_t FindBit(ConstBytes bits, uint64_t at, uint64_t end, bool value) {
  const std::byte dull = value ? std::byte{0} : std::byte{0xff};
  while (at < end) {
    if (at % 8 == 0 && bits[at / 8] == dull) {
      at += 8;
    } else if (IsSet(bits, at) == value) {
      return at;
    } else {
      ++at;
    }
  }
  return end;
}

}  // namespace

bool VisitBits(ConstBytes bits, uint64_t count,
               const std::function<bool(uint64_t first, uint64_t number)>& visit) {
  for (uint64_t at = FindBit(bits, 0, count, true); at < count;) {
    const uint64_t end = FindBit(bits, at, count, false);
    if (!visit(at, end - at)) return false;
    at = FindBit(bits, end, count, true);
  }
  return true;
}

void SetBits(Bytes bits, uint64_t first, uint64_t number) {
  for (uint64_t at = first; at < first + number;) {
    if (at % 8 == 0 && first + number - at >= 8) {
      bits[at / 8] = std::byte{0xff};
      at += 8;
    } else {
      bits[at / 8] |= std::byte{1} << at % 8;
      ++at;
    }
  }
}

void ClearBits(Bytes bits, uint64_t first) {
  if (first / 8 >= bits.size()) return;
  bits[first / 8] &= static_cast<std::byte>((1u << first % 8) - 1);
  std::ranges::fill(bits.subspan(first / 8 + 1), std::byte{0});
}

std::optional<uint64_t> DirtyPages::Missing(Range guest) const {
  for (uint64_t index = guest.offset / span(); index * span() < guest.end(); ++index) {
    if (!pages_.contains(index)) return index;
  }
  return std::nullopt;
}

const DirtyPages::Page* DirtyPages::Find(uint64_t index) const {
  auto at = pages_.find(index);
  return at == pages_.end() ? nullptr : &at->second;
}

Range DirtyPages::BitsOf(uint64_t index, Range guest) const {
  const Range here = GuestOf(index).Intersect(guest);
  const uint64_t start = index * span();
  const uint64_t granule = uint64_t{1} << granularity_bits_;
  return Range::FromTo((here.offset - start) >> granularity_bits_,
                       DivideUp(here.end() - start, granule));
}

bool DirtyPages::Covers(Range guest) const {
  for (uint64_t index = guest.offset / span(); index * span() < guest.end(); ++index) {
    const Page* page = Find(index);
    if (page == nullptr) return false;
    if (page->bits.empty()) continue;
    const Range bits = BitsOf(index, guest);
    if (FindBit(page->bits, bits.offset, bits.end(), false) < bits.end()) return false;
  }
  return true;
}

void DirtyPages::Set(Range guest) {
  for (uint64_t index = guest.offset / span(); index * span() < guest.end(); ++index) {
    auto at = pages_.find(index);
    CHECK(at != pages_.end());
    Page& page = at->second;
    if (page.bits.empty()) continue;
    const Range bits = BitsOf(index, guest);
    if (FindBit(page.bits, bits.offset, bits.end(), false) == bits.end()) continue;
    SetBits(page.bits, bits.offset, bits.length);
    page.changed = true;
  }
}

}  // namespace platter::qcow2
