#include "io/unpack/index.h"

#include <algorithm>
#include <array>
#include <bit>

#include "base/endian.h"
#include "io/buffer.h"
#include "io/unpack/lzma.h"

namespace platter {

namespace {

constexpr size_t kPeek = 4096;  // bytes: headers are often farther apart
constexpr size_t kMostMembers = 1'000'000;
constexpr uint64_t kMostWindow = kTiB;  // what is larger is too large, however large it is
// Members are often tiny (BGZF: 64 KiB at most), so neighbours are taken together up to this.
constexpr uint64_t kGather = kMiB;

// Small reads at ascending offsets, through one buffer. Nullopt past the end, and where reading
// fails: both end the search for an index.
class Peeker {
 public:
  explicit Peeker(Store& store, uint64_t size) : store_(store), size_(size), buffer_(64 * kKiB) {}

  std::optional<ConstBytes> At(uint64_t at, size_t length) {
    if (!FitsIn(at, length, size_)) return std::nullopt;
    if (at < held_.offset || at + length > held_.end()) {
      held_ = {at, std::min<uint64_t>(std::max(length, kPeek), size_ - at)};
      if (!store_.Read(at, buffer_.bytes().first(held_.length))) return std::nullopt;
    }
    return std::as_const(buffer_).bytes().subspan(at - held_.offset, length);
  }

  template <class T>
  std::optional<T> Load(uint64_t at) {
    auto bytes = At(at, sizeof(T));
    return bytes ? LoadAt<T>(*bytes, 0) : std::nullopt;
  }

  uint64_t size() const { return size_; }

 private:
  Store& store_;
  const uint64_t size_;
  Buffer buffer_;
  Range held_;
};

struct Member {
  uint64_t packed = 0, content = 0;  // bytes
  uint64_t memory = 0;               // bytes
};

// RFC 1952, section 2.3; the field BC as in the SAM specification, section 4.1.
std::optional<Member> FindBgzfMember(Peeker& peek, uint64_t at) {
  struct Head {
    std::array<uint8_t, 4> magic_method_flags;
    std::array<uint8_t, 6> time_flags_system;
    le16 extra_length;
  };
  auto head = peek.Load<Head>(at);
  if (!head || head->magic_method_flags != std::array<uint8_t, 4>{0x1f, 0x8b, 8, 4}) return {};
  auto extra = peek.At(at + sizeof(Head), head->extra_length);
  for (size_t i = 0; extra && i + 6 <= extra->size();) {
    struct Field {
      std::array<char, 2> id;
      le16 length, value;
    };
    auto field = LoadAt<Field>(*extra, i);
    if (field->id == std::array<char, 2>{'B', 'C'} && field->length == 2) {
      const uint64_t packed = uint64_t{field->value} + 1;
      if (packed < sizeof(Head) + 8) return {};
      auto content = peek.Load<le32>(at + packed - 4);
      if (!content) return {};
      return Member{packed, *content, 0};
    }
    i += 4 + field->length;
  }
  return {};
}

// The block headers of a frame, RFC 8878, section 3.1.1.2: where the last block ends.
std::optional<uint64_t> FindFrameEnd(Peeker& peek, uint64_t at, bool checksum, size_t& steps) {
  for (bool last = false; !last;) {
    if (++steps > kMostMembers) return {};
    auto bytes = peek.At(at, 3);
    if (!bytes) return {};
    uint32_t header = 0;
    for (int i = 2; i >= 0; --i) {
      header = header << 8 | std::to_integer<uint32_t>((*bytes)[static_cast<size_t>(i)]);
    }
    last = (header & 1) != 0;
    const uint32_t type = header >> 1 & 3;
    if (type == 3) return {};
    at += 3 + (type == 1 ? 1 : header >> 3);  // 1: one byte that is repeated
  }
  return at + (checksum ? 4 : 0);
}

// RFC 8878, section 3.1.1.1: the frame header, for frames that say how long their content is.
std::optional<Member> FindFrame(Peeker& peek, uint64_t at, size_t& steps) {
  auto magic = peek.Load<le32>(at);
  if (!magic) return {};
  if ((*magic & 0xfffffff0) == 0x184d2a50) {  // section 3.1.2: skippable
    auto length = peek.Load<le32>(at + 4);
    if (!length) return {};
    return Member{8 + uint64_t{*length}, 0, 0};
  }
  auto descriptor = peek.Load<uint8_t>(at + 4);
  if (*magic != 0xfd2fb528 || !descriptor) return {};
  const bool single = (*descriptor & 0x20) != 0, checksum = (*descriptor & 4) != 0;
  constexpr uint8_t kIdSizes[] = {0, 1, 2, 4};
  const uint8_t size_code = *descriptor >> 6;
  if (size_code == 0 && !single) return {};  // no content size
  uint64_t field = at + 5 + (single ? 0 : 1) + kIdSizes[*descriptor & 3];

  Member member;
  switch (size_code) {
    case 0:
      if (auto size = peek.Load<uint8_t>(field)) member.content = *size;
      break;
    case 1:
      if (auto size = peek.Load<le16>(field)) member.content = uint64_t{*size} + 256;
      break;
    case 2:
      if (auto size = peek.Load<le32>(field)) member.content = *size;
      break;
    case 3:
      if (auto size = peek.Load<le64>(field)) member.content = *size;
      break;
  }
  member.memory = member.content;  // the window of a single segment
  if (!single) {
    auto window = peek.Load<uint8_t>(at + 5);
    if (!window) return {};
    const uint64_t base = uint64_t{1} << (10 + (*window >> 3));
    member.memory = base + base / 8 * (*window & 7);
  }
  member.memory = std::bit_ceil(std::min(member.memory, kMostWindow));
  auto end = FindFrameEnd(peek, field + (uint64_t{1} << size_code), checksum, steps);
  if (!end) return {};
  member.packed = *end - at;
  return member;
}

// True if all of the rest is zero bytes, which is padding.
bool IsPadding(Peeker& peek, uint64_t at) {
  while (at < peek.size()) {
    auto bytes = peek.At(at, std::min<uint64_t>(64 * kKiB, peek.size() - at));
    if (!bytes || !IsZero(*bytes)) return false;
    at += bytes->size();
  }
  return true;
}

std::optional<UnpackIndex> WalkMembers(Store& packed, uint64_t size, Packing packing) {
  Peeker peek(packed, size);
  UnpackIndex index;
  size_t steps = 0;
  bool too_long = false;
  for (uint64_t at = 0; at < size;) {
    if (++steps > kMostMembers) return {};
    auto member = packing == Packing::kZstd ? FindFrame(peek, at, steps) : FindBgzfMember(peek, at);
    if (!member) {
      if (at == 0 || !IsPadding(peek, at)) return {};
      break;
    }
    if (!FitsIn(at, member->packed, size)) return {};
    auto end = CheckedAdd(index.size, member->content);
    if (!end) return {};
    PackedBlock* last = index.blocks.empty() ? nullptr : &index.blocks.back();
    if (last && last->guest.length + member->content <= kGather) {
      last->host.length += member->packed;
      last->guest.length += member->content;
    } else {
      index.blocks.push_back({{at, member->packed}, {index.size, member->content}});
    }
    too_long = too_long || member->content > UnpackIndex::kMostBlock;
    index.size = *end;
    index.memory = std::max(index.memory, member->memory);
    at += member->packed;
  }
  if (too_long) index.blocks.clear();
  return index;
}

}  // namespace

std::optional<UnpackIndex> ReadIndex(Store& packed, Packing packing) {
  switch (packing) {
    case Packing::kBzip2: return std::nullopt;
    case Packing::kXz: return internal::ReadXzIndex(packed);
    case Packing::kGzip:
    case Packing::kZstd: break;
  }
  auto size = packed.Size();
  if (!size) return std::nullopt;
  return WalkMembers(packed, *size, packing);
}

Result<std::unique_ptr<Decoder>> MakeBlockDecoder(Packing packing, const PackedBlock& block,
                                                  uint64_t memory) {
  if (packing != Packing::kXz) return MakeDecoder(packing, memory);
  return internal::MakeXzBlockDecoder(block.unpadded, static_cast<lzma_check>(block.check), memory);
}

}  // namespace platter
