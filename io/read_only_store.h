// ReadOnlyStore: what every store that can only be read answers to the calls that would change it.
#pragma once

#include "io/store.h"

namespace platter {

class ReadOnlyStore : public Store {
 public:
  using Store::Read;
  using Store::Write;
  bool writable() const final { return false; }
  Result<> Write(uint64_t, std::span<const iovec>) final { return Refused(); }
  Result<> Zero(Range, bool) final { return Refused(); }
  Result<> Sync() final { return {}; }
  Result<> Resize(uint64_t) final { return Refused(); }
  Result<> Allocate(Range) final { return Refused(); }

 protected:
  // kReadOnly, with why.
  virtual std::unexpected<Error> Refused() const {
    return Fail(Code::kReadOnly, "'{}' can only be read", name());
  }
};

}  // namespace platter
