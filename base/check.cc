#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace platter::internal {

void CheckFailed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "platter: internal error: CHECK(%s) failed at %s:%d\n", condition, file,
               line);
  std::abort();
}

}  // namespace platter::internal
