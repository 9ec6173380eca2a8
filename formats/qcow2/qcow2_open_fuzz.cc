// A whole image of arbitrary bytes.
#include <cstdint>
#include <memory>

#include "formats/qcow2/qcow2.h"
#include "formats/qcow2/qcow2_parse.h"
#include "formats/testing/open_fuzz.h"

namespace platter::qcow2 {
namespace {

class AnyDataFile : public Opener {
 public:
  Result<std::unique_ptr<Store>> OpenReference(const Reference&, bool) override {
    return std::make_unique<MemoryStore>(64 * kKiB);
  }
};

// Unlocking LUKS is fuzzed elsewhere, and slow.
const Secret* PassphraseFor(ConstBytes image) {
  static const Secret secret{AsBytes(std::string_view("x"))};
  auto header = ParseHeader(image);
  return header.has_value() && header->crypt_method == kCryptAes ? &secret : nullptr;
}

}  // namespace
}  // namespace platter::qcow2

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  using namespace platter::qcow2;
  ConstBytes input = std::as_bytes(std::span(data, size));
  AnyDataFile opener;
  OpenFuzz what;
  what.options.opener = &opener;
  what.options.secret = PassphraseFor(input);
  UseImage(kQcow2Format, MemoryStore(input), input, what);
  return 0;
}
