#include "tools/daemon.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "base/bytes.h"

namespace platter {
namespace {

sigset_t StopSet() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, signal);
  return set;
}

}  // namespace

StopSignals::StopSignals() {
  sigset_t set = StopSet();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  fd_ = Fd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

void StopSignals::Release() {
  signalfd_siginfo first;
  // Those that are still pending count as one.
  while (read(fd_.get(), &first, sizeof first) > 0) {
  }
  sigset_t set = StopSet();
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) ::signal(signal, SIG_DFL);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

StopSignals::~StopSignals() {
  sigset_t set = StopSet();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

Result<Background> Background::Fork(int& exit_code) {
  exit_code = -1;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return FailErrno(errno, "--fork");
  Fd from_child(ends[0]), to_parent(ends[1]);
  const pid_t child = fork();
  if (child < 0) return FailErrno(errno, "--fork");
  if (child == 0) {
    setsid();
    return Background(std::move(to_parent));
  }
  to_parent = Fd();
  char ready = 0;
  while (true) {
    ssize_t count = read(from_child.get(), &ready, 1);
    if (count < 0 && errno == EINTR) continue;
    if (count == 1) exit_code = 0;
    break;
  }
  if (exit_code == 0) return Background();
  int status = 0;
  waitpid(child, &status, 0);
  exit_code = WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : 1;
  return Background();
}

void Background::Ready() {
  if (!pipe_) return;
  Fd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  for (int standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(null.get(), standard);
  // The parent may be gone already, which is its affair.
  (void)!write(pipe_.get(), "", 1);
  pipe_ = Fd();
}

Result<PidFile> PidFile::Write(const std::string& path) {
  Fd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  const std::string text = std::to_string(getpid()) + "\n";
  if (!fd || write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return FailErrno(errno, "pid file '{}'", Printable(path, 4096));
  }
  PidFile file;
  file.path_ = path;
  return file;
}

PidFile::~PidFile() {
  if (!path_.empty()) unlink(path_.c_str());
}

void NotifyReady() {
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = path ? std::strlen(path) : 0;
  if (length == 0 || length >= sizeof address.sun_path) return;
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = 0;  // an abstract name
  constexpr std::string_view kReady = "READY=1";
  Fd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sendto(fd.get(), kReady.data(), kReady.size(), MSG_NOSIGNAL,
         reinterpret_cast<const sockaddr*>(&address),
         static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length));
}

}  // namespace platter
