// NamedStores: the further files of an image, by name, for tests: those that creating it makes, in
// memory, and those that a test lends.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "formats/format.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"

namespace platter {

class NamedStores final : public FileMaker, public Opener {
 public:
  // Uses `store`, which outlives this and what it opens, as the file `name`.
  void Lend(const std::string& name, Store& store) { lent_[name] = &store; }

  Store* Find(const std::string& name) const {
    auto found = lent_.find(name);
    return found == lent_.end() ? nullptr : found->second;
  }

  Result<Store*> MakeFile(const std::string& name) override {
    if (Store* there = Find(name)) return there;
    auto made = std::make_unique<MemoryStore>();
    lent_[name] = made.get();
    return made_.emplace(name, std::move(made)).first->second.get();
  }

  Result<std::unique_ptr<Store>> OpenReference(const Reference& reference, bool) override {
    Store* store = Find(reference.name);
    if (!store) return Fail(Code::kRefused, "there is no file '{}'", reference.name);
    return std::make_unique<WrapperStore>(*store);
  }

 private:
  std::map<std::string, Store*> lent_;
  std::map<std::string, std::unique_ptr<MemoryStore>> made_;
};

}  // namespace platter
