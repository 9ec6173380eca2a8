// A client that sends anything at all. The first byte chooses how bytes are cut into pieces and
// what of the handshake is done for it; the rest is what it sends.
#include <algorithm>
#include <cstdlib>

#include "io/engine/engine.h"
#include "nbd/session_testing.h"

namespace {

using namespace platter;
using namespace platter::nbd;

// Good beginnings, so that the fuzzer need not find them.
std::string Beginning(unsigned which) {
  const std::string flags = Raw(ClientFlags{kFixedNewstyle | kNoZeroes});
  const std::string contexts = ContextBytes(kOptSetMetaContext, "disk", {"base:allocation"});
  switch (which) {
    case 0: return "";
    case 1: return flags;
    case 2: return flags + GoBytes("disk");
    case 3: return flags + OptionBytes(kOptStructuredReply) + contexts + GoBytes("disk");
    default:
      return flags + OptionBytes(kOptExtendedHeaders) + contexts + GoBytes("disk", {kInfoResize});
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  constexpr uint64_t kSize = 1 << 20;
  TestExports exports;
  exports.Add("disk", MemoryDisk("qcow2", kSize));
  exports.Add("other", MemoryDisk("raw", kSize), false);
  const unsigned choice = data[0];
  Driven driven(exports, {.tls = (choice & 8) ? TlsPolicy::kOffered : TlsPolicy::kNone});
  driven.try_first = (choice & 16) != 0;
  const size_t steps[] = {SIZE_MAX, 1, 13, 4096};
  driven.Feed(Beginning(choice & 7));
  std::string_view sent(reinterpret_cast<const char*>(data + 1), size - 1);
  driven.Feed(sent, steps[choice >> 6]);
  // What a client made us do leaves a disk that can be read.
  if (driven.session.transmitting()) {
    const Export& chosen = *driven.session.chosen();
    Buffer buffer(std::min<uint64_t>(4096, chosen.size()));
    auto read = Read(*chosen.layer, 0, buffer.bytes());
    if (!read) std::abort();
  }
  return 0;
}
