#include "base/sync.h"

namespace platter::sched {
thread_local Hook* hook = nullptr;
}
