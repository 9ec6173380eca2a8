// Ctrl-C, SIGTERM and SIGHUP: long work is cancelled, temporary outputs are
// removed, exit code 130. A second signal does not wait for the work to notice.
#pragma once

#include "io/engine/engine.h"

namespace platter {

// Installs the handlers; SIGUSR1 asks a running command for a line of progress.
void HandleInterrupts();

// True once a signal asked us to stop.
bool Interrupted();

// True once for each SIGUSR1.
bool TakeProgressRequest();

// While it lives, a signal cancels `progress`.
class CancelOnInterrupt {
 public:
  explicit CancelOnInterrupt(Progress& progress);
  ~CancelOnInterrupt();
  CancelOnInterrupt(const CancelOnInterrupt&) = delete;
  CancelOnInterrupt& operator=(const CancelOnInterrupt&) = delete;
};

}  // namespace platter
