// QEMU's tools as judges.
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
Outcome Shell(const std::string& command);

// Fails the current test with the command and its output unless it exits with 0.
std::string MustRun(const std::string& command);

}  // namespace platter::testing_support
