// Whatever a server says: in the handshake, and then in reply to one request of each kind.
#include <cstdint>

#include "nbd/client/canned_stream_testing.h"
#include "nbd/client/connection.h"
#include "nbd/client/handshake.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace platter;
  using namespace platter::nbd;
  ConstBytes bytes = std::as_bytes(std::span(data, size));
  Uri uri;
  uri.export_name = "disk";
  auto opened = ShakeHands(uri, std::make_unique<CannedStream>(bytes));
  if (!opened) return 0;
  // Small, so that an answer of few bytes can be whole.
  std::byte memory[512];
  const iovec one{memory, sizeof memory};
  ClientConnection connection(std::move(*opened));
  std::vector<StatusRun> runs;
  for (Command command : {kCmdRead, kCmdBlockStatus, kCmdRead, kCmdFlush}) {
    Call call;
    call.command = command;
    call.range = {0, sizeof memory};
    if (command == kCmdRead) call.into = {&one, 1};
    runs.clear();
    call.runs = &runs;
    if (!connection.Perform(call)) return 0;
  }
  return 0;
}
