#include "tests/interop/qemu.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string_view>

namespace platter::testing_support {
namespace {

constexpr std::string_view kCoarseClock = "Unable to get accurate CPU usage";
constexpr int kMostRepeats = 20;

Outcome RunOnce(const std::string& command) {
  Outcome outcome{-1, {}};
  FILE* pipe = popen(("exec 2>&1\n" + command).c_str(), "r");
  if (!pipe) return outcome;
  std::array<char, 4096> chunk;
  while (size_t count = std::fread(chunk.data(), 1, chunk.size(), pipe))
    outcome.output.append(chunk.data(), count);
  int status = pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome;
}

}  // namespace

TempFolder::TempFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "platter-test-XXXXXX").string();
  path_ = mkdtemp(name.data());
}

TempFolder::~TempFolder() {
  if (std::getenv("PLATTER_KEEP_FOLDERS")) return;  // to look at what a failed test left
  std::filesystem::remove_all(path_);
}

Outcome Shell(const std::string& command) {
  Outcome outcome = RunOnce(command);
  for (int again = 0; again < kMostRepeats && outcome.exit_code > 0; ++again) {
    if (outcome.output.find(kCoarseClock) == std::string::npos) break;
    outcome = RunOnce(command);
  }
  if (outcome.exit_code == 127)
    ADD_FAILURE() << outcome.output << "install with: apt-get install qemu-utils";
  return outcome;
}

std::string MustRun(const std::string& command) {
  Outcome outcome = Shell(command);
  EXPECT_EQ(outcome.exit_code, 0) << command << "\n" << outcome.output;
  return outcome.output;
}

}  // namespace platter::testing_support
