// CHECK: programmer errors only, never bytes from an image, a socket or a guest. Stays on in
// release builds; it prints the condition and aborts.
#pragma once

namespace platter::internal {
[[noreturn]] void CheckFailed(const char* condition, const char* file, int line);
}

#define CHECK(condition)        \
  (static_cast<bool>(condition) \
       ? static_cast<void>(0)   \
       : ::platter::internal::CheckFailed(#condition, __FILE__, __LINE__))
