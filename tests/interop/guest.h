// A small Linux machine of its own, for judges that live in a kernel: Debian's cloud kernel on QEMU
// without hardware acceleration, with an initramfs of busybox and whatever programs of this machine
// a test puts there. It boots in about six seconds of CPU time.
#pragma once

#include <string>

#include "tests/interop/qemu.h"

namespace platter::testing_support {

class Guest {
 public:
  // The test fails, with the line that installs what is missing, if there is no kernel or no QEMU.
  explicit Guest(const TempFolder& folder);

  // A program with its libraries, called by its name in the guest.
  void AddProgram(const std::string& path);
  // The kernel's friend in user space, which this machine need not have.
  void AddNbdClient() { AddProgram(kernel_ + "/sbin/nbd-client"); }

  // Boots, loads kernel modules, runs the script by busybox's shell (where each command has to
  // succeed) and returns what it printed, which comes through a terminal. The test fails unless the
  // script ended well. This machine is 10.0.2.2 there, with the ports of 127.0.0.1.
  std::string Run(const std::string& modules, const std::string& script);

 private:
  std::string In(const std::string& path) const { return root_ + "/" + path; }

  const TempFolder& folder_;
  const std::string root_;  // what becomes the guest's root
  std::string kernel_;      // of guest_kernel.sh
};

}  // namespace platter::testing_support
