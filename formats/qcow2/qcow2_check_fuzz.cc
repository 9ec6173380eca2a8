// Check and repair of an arbitrary small file. Beside not crashing: a check changes nothing, a
// repair reports what a check finds after it, and doing it twice changes nothing more.
//
// The input's first byte chooses what happens, the rest is the file.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "formats/qcow2/qcow2_check.h"
#include "io/memory_store.h"

namespace platter::qcow2 {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckAndRepair(ConstBytes file, CheckOptions::Repair mode) {
  MemoryStore store(file);
  auto found = CheckQcow2(store, {}, {});
  Require(std::ranges::equal(store.Contents(), file));
  if (!found.has_value()) return;
  auto repaired = CheckQcow2(store, {}, {.repair = mode});
  if (!repaired.has_value()) return;  // no room for new structures
  // What is left may not be more than what the check of the result finds, and stays as it is.
  auto left = CheckQcow2(store, {}, {});
  Require(left.has_value());
  Require(left->leaks == repaired->leaks && left->corruptions == repaired->corruptions);
  // New structures make the file longer, and then a damaged image may refer to more of it.
  if (store.Contents().size() != file.size()) return;
  auto again = CheckQcow2(store, {}, {.repair = mode});
  Require(again.has_value() && again->leaks_fixed == 0);
  Require(again->leaks == left->leaks && again->corruptions == left->corruptions);
}

}  // namespace
}  // namespace platter::qcow2

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  constexpr size_t kMaxFile = 1 << 20;
  if (size < 2 || size > kMaxFile) return 0;
  auto mode = data[0] & 1 ? CheckOptions::kAll : CheckOptions::kLeaks;
  qcow2::CheckAndRepair(std::as_bytes(std::span(data + 1, size - 1)), mode);
  if (data[0] & 2) {
    MemoryStore store(std::as_bytes(std::span(data + 1, size - 1)));
    if (!qcow2::RepairDirty(store).has_value()) return 0;
  }
  return 0;
}
