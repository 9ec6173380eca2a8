// The command line in process, for tests.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/interop/qemu.h"
#include "tools/command.h"

namespace platter {

struct Ran {
  int code;
  std::string out, err;
};

inline Ran Platter(std::vector<std::string> args) {
  StringConsole console;
  int code = RunPlatter(args, console);
  return {code, console.out, console.err};
}

class PlatterTest : public testing::Test {
 protected:
  std::string File(const std::string& name) { return folder_.File(name); }

  // A raw file with data, zeros and holes.
  std::string RawSource() {
    std::string path = File("source.raw");
    testing_support::MustRun(
        "truncate -s 8M " + path +
        " && qemu-io -f raw -c 'write -P 17 1M 300k' -c 'write -P 0 3M 64k' -c 'write -P 99 "
        "5000k 4k' " +
        path);
    return path;
  }

  testing_support::TempFolder folder_;
};

}  // namespace platter
