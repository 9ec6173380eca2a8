#include <cstddef>
#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Reads every byte, so that a sanitizer would notice a replay that passes a wrong size.
  uint8_t sum = 0;
  for (size_t i = 0; i < size; ++i) sum = static_cast<uint8_t>(sum + data[i]);
  volatile uint8_t sink = sum;
  static_cast<void>(sink);
  return 0;
}
