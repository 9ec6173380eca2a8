#include "tools/interrupt.h"

#include <unistd.h>

#include <atomic>
#include <csignal>

#include "io/atomic_file.h"

namespace platter {
namespace {

// Touched by the signal handler: lock-free atomics only.
std::atomic<bool> interrupted{false};
std::atomic<bool> progress_wanted{false};
std::atomic<Progress*> running{nullptr};
static_assert(std::atomic<Progress*>::is_always_lock_free);

void OnStop(int) {
  if (interrupted.exchange(true)) {
    UnlinkTemporaries();
    _exit(130);
  }
  if (Progress* progress = running.load()) progress->cancel.store(true);
}

void OnProgressRequest(int) { progress_wanted.store(true); }

void Install(int signal, void (*handler)(int), int flags) {
  struct sigaction action{};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigaction(signal, &action, nullptr);
}

}  // namespace

void HandleInterrupts() {
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) Install(signal, OnStop, 0);
  Install(SIGUSR1, OnProgressRequest, SA_RESTART);
}

bool Interrupted() { return interrupted.load(); }
bool TakeProgressRequest() { return progress_wanted.exchange(false); }

CancelOnInterrupt::CancelOnInterrupt(Progress& progress) {
  running.store(&progress);
  if (Interrupted()) progress.cancel.store(true);
}
CancelOnInterrupt::~CancelOnInterrupt() { running.store(nullptr); }

}  // namespace platter
