// A running `platter serve`, for tests whose judges are other programs' NBD clients.
#pragma once

#include <sys/types.h>

#include <string>

#include "tests/interop/qemu.h"

namespace platter::testing_support {

// Starts in the constructor, on the unix socket `name`.sock of `folder`, and is told to end in the
// destructor. The test needs //tools:platter as data.
class Served {
 public:
  // `arguments` as a shell takes them: options, and at least one image.
  Served(const TempFolder& folder, const std::string& arguments, const std::string& name = "serve");
  ~Served();
  Served(const Served&) = delete;
  Served& operator=(const Served&) = delete;

  const std::string& socket() const { return socket_; }
  // "nbd+unix:///EXPORT?socket=PATH", quoted for a shell.
  std::string Uri(const std::string& export_name = "") const;
  pid_t pid() const { return pid_; }

  // SIGTERM, and waits until it is over.
  void Stop();
  // SIGKILL, likewise.
  void Kill();

  // What it printed on standard output and error.
  std::string Log() const;

 private:
  void Wait();

  const std::string socket_, log_;
  pid_t pid_ = -1;
};

// The program under test.
std::string PlatterProgram();

// Runs a script of Debian's python3, which has libnbd's module; returns what it printed. Fails the
// current test unless it exits with 0.
std::string MustRunPython(const TempFolder& folder, const std::string& script);

}  // namespace platter::testing_support
