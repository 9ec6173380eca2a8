#include "tests/interop/guest.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

namespace platter::testing_support {
namespace {

// What the console shows before and after the output of the script.
constexpr std::string_view kBegin = "--- the script\n";
constexpr std::string_view kGood = "--- it ended well\n";

constexpr std::string_view kAlways = "virtio_pci virtio_net ";  // modules

std::string Init(const std::string& modules) {
  return R"(#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for module in )" +
         std::string(kAlways) + modules + R"(; do modprobe $module || poweroff -f; done
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
stty -onlcr
echo '--- the script'
sh -e /script 2>&1 && echo '--- it ended well'
poweroff -f
)";
}

void WriteFile(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

}  // namespace

Guest::Guest(const TempFolder& folder) : folder_(folder), root_(folder.File("guest")) {
  const std::string log = folder.File("kernel.log");
  const bool programs = Shell("command -v qemu-system-x86_64 && command -v busybox").exit_code == 0;
  Outcome found = Shell("tests/interop/guest_kernel.sh 2>" + log);
  if (!programs || found.exit_code != 0) {
    ADD_FAILURE() << "no guest can be made:\n"
                  << Shell("cat " + log).output
                  << "install with: apt-get install qemu-system-x86 busybox-static && "
                     "tests/interop/guest_kernel.sh";
    return;
  }
  kernel_ = found.output.substr(0, found.output.find('\n'));
  MustRun(
      "mkdir -p " + root_ + " && cd " + root_ +
      " && mkdir -p bin sbin proc sys dev tmp mnt lib/modules && cp $(command -v busybox) bin/");
}

// Libraries that came with the kernel go where others are, and debug information stays here: it
// would fill the guest's memory.
void Guest::AddProgram(const std::string& path) {
  if (kernel_.empty()) return;
  MustRun("set -e; export LD_LIBRARY_PATH=" + kernel_ + "/lib/x86_64-linux-gnu; cp -L " + path +
          " " + In("sbin/") + "; strip --strip-debug " + In("sbin/") + "$(basename " + path +
          "); for file in $(ldd " + path + " | grep -o '/[^ ]*'); do to=" + root_ + "${file#" +
          kernel_ + "}; mkdir -p $(dirname $to); cp -nL $file $to; done");
}

std::string Guest::Run(const std::string& modules, const std::string& script) {
  if (kernel_.empty()) return {};
  WriteFile(In("init"), Init(modules));
  WriteFile(In("script"), script);
  MustRun("set -e; cd " + kernel_ + "/lib/modules/*; to=" + In("lib/modules") +
          "/$(basename $PWD); mkdir $to; cp modules.dep modules.builtin $to; for name in " +
          std::string(kAlways) + modules +
          "; do for file in $(sed -n \"s,^\\(.*/$name.ko\\):,\\1,p\" modules.dep); do cp -n "
          "--parents $file $to; done; done");
  MustRun("chmod 755 " + In("init") + " && cd " + root_ +
          " && find . | busybox cpio -o -H newc 2>/dev/null >../initramfs");
  MustRun(
      "timeout 200 qemu-system-x86_64 -accel tcg -cpu max -m 1024 -nodefaults -no-reboot "
      "-display none -serial file:" +
      folder_.File("console") + " -device virtio-net-pci,netdev=n -netdev user,id=n -kernel " +
      kernel_ + "/vmlinuz -initrd " + folder_.File("initramfs") +
      " -append 'console=ttyS0 quiet panic=-1'");
  std::ifstream file(folder_.File("console"));
  std::string output{std::istreambuf_iterator<char>(file), {}};
  const size_t begin = output.find(kBegin), end = output.find(kGood);
  if (begin == output.npos || end == output.npos) {
    ADD_FAILURE() << "the guest's script failed:\n" << script << "\n" << output;
    return {};
  }
  return output.substr(begin + kBegin.size(), end - begin - kBegin.size());
}

}  // namespace platter::testing_support
