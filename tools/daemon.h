// What a command that goes on running needs of the system: to stop when told, to say when it is
// ready, and to go on in the background.
#pragma once

#include <string>

#include "base/result.h"
#include "io/fd.h"

namespace platter {

// While it lives, SIGINT, SIGTERM and SIGHUP are not delivered to the calling thread and those it
// starts: they make fd() readable. A second one ends the program at once.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  int fd() const { return fd_.get(); }
  // The first one has been seen to: from now on signals do what they did before.
  void Release();

 private:
  Fd fd_;
};

// Goes on in a child, before any thread runs. In the parent: waits until the child is ready, and
// sets `exit_code` to what the parent is to exit with: 0, or the child's if it never was. In the
// child `exit_code` stays -1.
class Background {
 public:
  static Result<Background> Fork(int& exit_code);
  Background() = default;
  // In the child: the parent may exit; standard input, output and error are let go of.
  void Ready();

 private:
  explicit Background(Fd pipe) : pipe_(std::move(pipe)) {}
  Fd pipe_;
};

// A file that holds our process id; removed at the end.
class PidFile {
 public:
  static Result<PidFile> Write(const std::string& path);
  PidFile() = default;
  PidFile(PidFile&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  PidFile& operator=(PidFile&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }
  ~PidFile();

 private:
  std::string path_;
};

// Tells systemd that the service is ready (sd_notify(3), READY=1), if it asked to be told.
void NotifyReady();

}  // namespace platter
