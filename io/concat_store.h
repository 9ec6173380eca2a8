// ConcatStore: several stores in a row as one: the parts of a split raw image.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/store.h"

namespace platter {

class ConcatStore final : public Store {
 public:
  // At least one part; their sizes are those of now and do not change.
  static Result<std::unique_ptr<ConcatStore>> Open(std::vector<std::unique_ptr<Store>> parts);

  Caps caps() const override { return caps_; }
  // The first part's name and the number of others.
  const std::string& name() const override { return name_; }
  bool writable() const override { return writable_; }
  Result<uint64_t> Size() const override { return size_; }
  using Store::Read;
  using Store::Write;
  Result<> Read(uint64_t at, std::span<const iovec> into) override;
  // kNoSpace past the end of the last part.
  Result<> Write(uint64_t at, std::span<const iovec> from) override;
  Result<> Zero(Range range, bool may_unmap) override;
  Result<> Sync() override;
  // Only to the size it has.
  Result<> Resize(uint64_t size) override;
  Result<> Allocate(Range range) override;
  // Ends with the part at the latest.
  Result<Run> FindRun(uint64_t at) override;
  size_t TryRead(uint64_t at, std::span<const iovec> into) override;

 private:
  struct Part {
    std::unique_ptr<Store> store;
    Range range;  // in the whole
  };
  ConcatStore() = default;
  size_t PartAt(uint64_t at) const;
  Result<> CheckRoom(Range range) const;
  template <class Each>
  Result<> ForEachPart(Range range, Each each);

  std::vector<Part> parts_;  // ascending, contiguous, none empty
  uint64_t size_ = 0;
  Caps caps_;
  std::string name_;
  bool writable_ = true;
};

}  // namespace platter
