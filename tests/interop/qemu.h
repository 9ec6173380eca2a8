// QEMU's tools as judges, and the shell in general: the one way in which tests run programs.
#pragma once

#include <filesystem>
#include <string>

namespace platter::testing_support {

// A folder of its own for one test, gone afterwards.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::string File(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

struct Outcome {
  int exit_code;
  std::string output;  // standard output and error together
};

// Runs a shell command. A test that needs a missing program fails with the line that installs it.
//
// Making a LUKS image, qemu-img 7.2 measures how long key derivation takes by the CPU time of its
// thread, and gives up where the kernel counts that coarsely, as it does on a busy machine. A
// command that failed so is repeated; so whatever stands before qemu-img in it must bear that.
Outcome Shell(const std::string& command);

// Fails the current test with the command and its output unless it exits with 0.
std::string MustRun(const std::string& command);

}  // namespace platter::testing_support
