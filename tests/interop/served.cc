#include "tests/interop/served.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

namespace platter::testing_support {

std::string PlatterProgram() { return std::filesystem::absolute("tools/platter").string(); }

Served::Served(const TempFolder& folder, const std::string& arguments, const std::string& name)
    : socket_(folder.File(name + ".sock")), log_(folder.File(name + ".log")) {
  const std::string pid_file = folder.File(name + ".pid");
  std::filesystem::remove(pid_file);
  pid_ = fork();
  if (pid_ == 0) {
    const std::string command = "exec " + PlatterProgram() + " serve --socket " + socket_ +
                                " --pid-file " + pid_file + " " + arguments + " >" + log_ +
                                " 2>&1 </dev/null";
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  // The pid file is there once clients can connect.
  for (int i = 0; i < 3000 && !std::filesystem::exists(pid_file); ++i) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      ADD_FAILURE() << "platter serve " << arguments << " ended: " << Log();
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

Served::~Served() { Stop(); }

void Served::Stop() {
  if (pid_ < 0) return;
  kill(pid_, SIGTERM);
  Wait();
}

void Served::Kill() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
}

void Served::Wait() {
  int status = 0;
  waitpid(pid_, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status << "\n" << Log();
  pid_ = -1;
}

std::string Served::Uri(const std::string& export_name) const {
  return "'nbd+unix:///" + export_name + "?socket=" + socket_ + "'";
}

std::string Served::Log() const {
  std::ifstream file(log_);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string MustRunPython(const TempFolder& folder, const std::string& script) {
  const std::string path = folder.File("script.py");
  std::ofstream(path) << script;
  return MustRun("/usr/bin/python3 " + path);
}

}  // namespace platter::testing_support
