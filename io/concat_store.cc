#include "io/concat_store.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/check.h"
#include "io/iov.h"

namespace platter {

Result<std::unique_ptr<ConcatStore>> ConcatStore::Open(std::vector<std::unique_ptr<Store>> parts) {
  CHECK(!parts.empty());
  std::unique_ptr<ConcatStore> whole(new ConcatStore);
  whole->name_ = parts[0]->name();
  if (parts.size() > 1) whole->name_ += fmt::format(" and {} more", parts.size() - 1);
  whole->caps_ = Caps{.punch = true, .block_device = true};
  for (auto& part : parts) {
    Caps caps = part->caps();
    whole->caps_.align = std::max(whole->caps_.align, caps.align);
    whole->caps_.preferred = std::max(whole->caps_.preferred, caps.preferred);
    whole->caps_.punch &= caps.punch;
    whole->writable_ &= part->writable();
    uint64_t size = TRY(part->Size());
    std::optional<uint64_t> end = CheckedAdd(whole->size_, size);
    if (!end) return Fail(Code::kOutOfRange, "'{}': the parts are too long together", whole->name_);
    if (size == 0) continue;
    whole->parts_.push_back({std::move(part), Range{whole->size_, size}});
    whole->size_ = *end;
  }
  return whole;
}

// The part that holds `at` < size_.
size_t ConcatStore::PartAt(uint64_t at) const {
  auto end =
      std::ranges::upper_bound(parts_, at, {}, [](const Part& part) { return part.range.offset; });
  return static_cast<size_t>(end - parts_.begin()) - 1;
}

// Calls each(store, its range, skip) for the piece of every part that `range` touches, which
// starts `skip` bytes into the range.
template <class Each>
Result<> ConcatStore::ForEachPart(Range range, Each each) {
  if (range.empty()) return {};
  for (size_t i = PartAt(range.offset); i < parts_.size(); ++i) {
    Range piece = parts_[i].range.Intersect(range);
    if (piece.empty()) break;
    TRY(each(*parts_[i].store, Range{piece.offset - parts_[i].range.offset, piece.length},
             piece.offset - range.offset));
  }
  return {};
}

Result<> ConcatStore::Read(uint64_t at, std::span<const iovec> into) {
  Range range{at, IovLength(into)};
  if (!FitsIn(range.offset, range.length, size_)) {
    return Fail(Code::kCorrupt, "'{}': {} bytes at {:#x} reach past the end (size {:#x})", name_,
                range.length, at, size_);
  }
  std::vector<iovec> list;
  return ForEachPart(range, [&](Store& store, Range piece, uint64_t skip) {
    list.clear();
    IovSlice(into, skip, piece.length, list);
    return store.Read(piece.offset, list);
  });
}

Result<> ConcatStore::CheckRoom(Range range) const {
  if (FitsIn(range.offset, range.length, size_)) return {};
  return Fail(Code::kNoSpace, "'{}': {} bytes at {:#x} reach past the end (size {:#x})", name_,
              range.length, range.offset, size_);
}

Result<> ConcatStore::Write(uint64_t at, std::span<const iovec> from) {
  Range range{at, IovLength(from)};
  TRY(CheckRoom(range));
  std::vector<iovec> list;
  return ForEachPart(range, [&](Store& store, Range piece, uint64_t skip) {
    list.clear();
    IovSlice(from, skip, piece.length, list);
    return store.Write(piece.offset, list);
  });
}

Result<> ConcatStore::Zero(Range range, bool may_unmap) {
  TRY(CheckRoom(range));
  return ForEachPart(
      range, [&](Store& store, Range piece, uint64_t) { return store.Zero(piece, may_unmap); });
}

Result<> ConcatStore::Sync() {
  for (Part& part : parts_) TRY(part.store->Sync());
  return {};
}

Result<> ConcatStore::Resize(uint64_t size) {
  if (size == size_) return {};
  return Fail(Code::kUnsupported, "'{}': the size of parts in a row is fixed ({} bytes)", name_,
              size_);
}

Result<> ConcatStore::Allocate(Range range) {
  TRY(CheckRoom(range));
  return ForEachPart(range,
                     [](Store& store, Range piece, uint64_t) { return store.Allocate(piece); });
}

Result<Store::Run> ConcatStore::FindRun(uint64_t at) {
  if (at >= size_) {
    return Fail(Code::kOutOfRange, "'{}': {:#x} is past the end (size {:#x})", name_, at, size_);
  }
  const Part& part = parts_[PartAt(at)];
  Run run = TRY(part.store->FindRun(at - part.range.offset));
  run.length = std::min(run.length, part.range.end() - at);
  return run;
}

size_t ConcatStore::TryRead(uint64_t at, std::span<const iovec> into) {
  if (at >= size_) return 0;
  Range range{at, std::min(IovLength(into), size_ - at)};
  size_t done = 0;
  std::vector<iovec> list;
  // Stops at the first part that serves less than was asked.
  auto step = [&](Store& store, Range piece, uint64_t skip) -> Result<> {
    if (done < skip) return {};
    list.clear();
    IovSlice(into, skip, piece.length, list);
    done += store.TryRead(piece.offset, list);
    return {};
  };
  (void)ForEachPart(range, step);
  return done;
}

}  // namespace platter
