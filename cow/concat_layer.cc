#include "cow/concat_layer.h"

#include <algorithm>

#include "base/check.h"

namespace platter {

namespace {

// A cipher that numbers sectors by where they are in the part's own disk, asked by somebody who
// numbers them by where they are in the whole.
class ShiftedCipher final : public Cipher {
 public:
  ShiftedCipher(const Cipher& cipher, uint64_t sectors) : cipher_(cipher), sectors_(sectors) {}

  Tweak tweak() const override { return cipher_.tweak(); }
  Result<> Encrypt(uint64_t sector, Bytes data) const override {
    return cipher_.Encrypt(sector - sectors_, data);
  }
  Result<> Decrypt(uint64_t sector, Bytes data) const override {
    return cipher_.Decrypt(sector - sectors_, data);
  }

 private:
  const Cipher& cipher_;
  const uint64_t sectors_;  // before the part
};

}  // namespace

Result<std::unique_ptr<Layer>> ConcatLayer::Join(std::vector<std::unique_ptr<Layer>> parts) {
  CHECK(!parts.empty());
  auto whole = std::make_unique<ConcatLayer>();
  whole->info_.format = "concatenation";
  whole->info_.sector = parts.front()->info().sector;
  for (auto& part : parts) {
    Range guest{whole->info_.size, part->info().size};
    auto end = CheckedAdd(guest.offset, guest.length);
    if (!end || *end > INT64_MAX)
      return Fail(Code::kOutOfRange, "the sources together are over 8 EiB");
    whole->info_.size = *end;
    whole->parts_.push_back({guest, std::move(part)});
  }
  return std::unique_ptr<Layer>(std::move(whole));
}

Result<size_t> ConcatLayer::Map(Range want, std::span<Extent> out) {
  if (want.empty() || !FitsIn(want.offset, want.length, info_.size)) {
    return Fail(Code::kOutOfRange, "bytes {} to {} are outside the sources ({} bytes)", want.offset,
                want.end(), info_.size);
  }
  auto part = std::find_if(parts_.begin(), parts_.end(),
                           [&](const Part& p) { return p.guest.Contains(want.offset); });
  Range inside = want.Intersect(part->guest);
  inside.offset -= part->guest.offset;
  size_t count = TRY(part->layer->Map(inside, out));
  for (Extent& extent : out.first(count)) {
    extent.guest.offset += part->guest.offset;
    extent.writable = false;
    if (extent.codec.cipher) extent.codec.cipher = TRY(CipherFor(*part, *extent.codec.cipher));
  }
  return count;
}

Result<const Cipher*> ConcatLayer::CipherFor(const Part& part, const Cipher& cipher) {
  const uint64_t begin = part.guest.offset;
  if (begin == 0 || cipher.tweak() == Cipher::Tweak::kHost) return &cipher;
  if (!IsAligned(begin, Cipher::kSector)) {
    return Fail(Code::kUnsupported,
                "an encrypted source cannot follow one of {} bytes: its sectors would begin off a "
                "multiple of {}",
                begin, Cipher::kSector);
  }
  std::lock_guard lock(mutex_);
  auto& shifted = shifted_[{&cipher, begin}];
  if (!shifted) shifted = std::make_unique<ShiftedCipher>(cipher, begin / Cipher::kSector);
  return shifted.get();
}

Result<std::unique_ptr<Reservation>> ConcatLayer::Reserve(Range) {
  return Fail(Code::kReadOnly, "several sources in a row are for reading");
}

Result<Range> ConcatLayer::Discard(Range, Kind) {
  return Fail(Code::kReadOnly, "several sources in a row are for reading");
}

}  // namespace platter
