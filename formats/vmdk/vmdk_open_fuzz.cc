// A whole image of arbitrary bytes. Every file that it names has the same bytes.
#include <cstdint>
#include <memory>

#include "formats/testing/open_fuzz.h"
#include "formats/vmdk/vmdk.h"

namespace platter {
namespace {

class SameBytes : public Opener {
 public:
  explicit SameBytes(ConstBytes bytes) : bytes_(bytes) {}
  Result<std::unique_ptr<Store>> OpenReference(const Reference&, bool) override {
    return std::make_unique<MemoryStore>(bytes_);
  }

 private:
  ConstBytes bytes_;
};

}  // namespace
}  // namespace platter

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  ConstBytes input = std::as_bytes(std::span(data, size));
  SameBytes files(input);
  OpenFuzz what;
  what.options.opener = &files;
  UseImage(kVmdkFormat, MemoryStore(input), input, what);
  return 0;
}
