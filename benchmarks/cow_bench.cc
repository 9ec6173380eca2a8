// Copy-on-write against qemu-img, alternating in one run, on tmpfs: snapshots of a large image,
// commit and rebase of an overlay over a real Debian image, and random writes into a fresh overlay.
//
//   cow_bench PLATTER IMAGE.raw [--runs N] [--only SUBSTRING] [--dir DIR]
//
// What commit and rebase leave is judged by `qemu-img compare` and `check` after the timing; a line
// whose result differs says FAILED.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "benchmarks/runner.h"

namespace {

using platter::bench::Compare;
using platter::bench::Comparison;
using platter::bench::PrintLine;

struct Bench {
  std::string platter, raw, dir, only;
  int runs = 5;

  std::string File(const std::string& name) const { return dir + "/" + name; }
  bool Wanted(const std::string& name) const { return name.find(only) != std::string::npos; }
};

void MustDo(const std::string& command) {
  if (std::system(command.c_str()) == 0) return;
  std::fprintf(stderr, "failed: %s\n", command.c_str());
  std::exit(1);
}

bool Does(const std::string& command) { return std::system(command.c_str()) == 0; }

// 1 TiB, 100,000 clusters in use, spread over all of it.
void Snapshots(const Bench& bench) {
  if (!bench.Wanted("snapshot")) return;
  const std::string image = bench.File("large.qcow2");
  MustDo("rm -f " + image + " && qemu-img create -q -f qcow2 " + image + " 1T && " + bench.platter +
         " bench -q -w -s 4k -S 10M -c 100000 " + image);
  const std::string ours = bench.platter + " snapshot -q ", peer = "qemu-img snapshot ";
  const std::string drop = "qemu-img snapshot -d s " + image + " 2>/dev/null; true";
  PrintLine("snapshot create",
            Compare(ours + "-c s " + image, peer + "-c s " + image, drop, bench.runs), 0.7);
  const std::string make = drop + "; qemu-img snapshot -c s " + image;
  Comparison deleted = Compare(ours + "-d s " + image, peer + "-d s " + image, make, bench.runs);
  deleted.ours.ok = deleted.ours.ok && Does("qemu-img check -q " + image);
  PrintLine("snapshot delete", deleted, 0.7);
  MustDo("rm -f " + image);
}

// base.qcow2 and a top.qcow2 over it with 4,000 writes, and copies to work on.
void Inputs(const Bench& bench) {
  const std::string base = bench.File("base.qcow2"), top = bench.File("top.qcow2");
  MustDo("cd " + bench.dir + " && qemu-img convert -W -m 16 -f raw -O qcow2 " + bench.raw + " " +
         base + " && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 " + top + " && " +
         bench.platter + " bench -q -w --pattern 7 -s 64k -S 1344k -c 4000 " + top);
  // Another base: the same but for some parts.
  MustDo("cp " + base + " " + bench.File("other.qcow2") + " && " + bench.platter +
         " bench -q -w --pattern 9 -s 64k -S 5M -c 400 " + bench.File("other.qcow2"));
  MustDo("qemu-img convert -O raw " + top + " " + bench.File("want.raw"));
  for (const char* name : {"base", "top"}) {
    MustDo("cp " + bench.File(std::string(name) + ".qcow2") + " " +
           bench.File(std::string(name) + ".saved"));
  }
}

std::string Restore(const Bench& bench) {
  return "cp " + bench.File("base.saved") + " " + bench.File("base.qcow2") + "; cp " +
         bench.File("top.saved") + " " + bench.File("top.qcow2");
}

bool ReadsAsWanted(const Bench& bench) {
  return Does("qemu-img compare -q -f raw -F qcow2 " + bench.File("want.raw") + " " +
              bench.File("top.qcow2") + " && qemu-img check -q " + bench.File("top.qcow2"));
}

void Chains(const Bench& bench) {
  Inputs(bench);
  const std::string top = bench.File("top.qcow2");
  if (bench.Wanted("commit")) {
    const std::string ours = bench.platter + " commit -q " + top;
    Comparison result = Compare(ours, "qemu-img commit -q " + top, Restore(bench), bench.runs);
    MustDo(Restore(bench));
    result.ours.ok = result.ours.ok && Does(ours) && ReadsAsWanted(bench);
    PrintLine("commit", result, 0.7);
  }
  if (bench.Wanted("rebase")) {
    const std::string arguments = " rebase -q -b other.qcow2 -F qcow2 " + top;
    const std::string ours = bench.platter + arguments, peer = "qemu-img" + arguments;
    Comparison result = Compare(ours, peer, Restore(bench), bench.runs);
    MustDo(Restore(bench));
    result.ours.ok = result.ours.ok && Does(ours) && ReadsAsWanted(bench);
    PrintLine("rebase", result, 0.7);
  }
  if (bench.Wanted("random write")) {
    const std::string fresh = "cd " + bench.dir +
                              " && rm -f fresh.qcow2 && qemu-img create -q -f qcow2 -b base.qcow2 "
                              "-F qcow2 fresh.qcow2";
    const std::string arguments = " bench -q -w -s 4k -S 1028k -c 20000 -d 64 ";
    MustDo(Restore(bench));
    PrintLine("random write into a fresh overlay",
              Compare(bench.platter + arguments + bench.File("fresh.qcow2"),
                      "qemu-img" + arguments + bench.File("fresh.qcow2"), fresh, bench.runs),
              0.7);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s PLATTER IMAGE.raw [--runs N] [--only SUBSTRING] [--dir DIR]\n",
                 argv[0]);
    return 2;
  }
  Bench bench;
  bench.platter = argv[1];
  bench.raw = argv[2];
  bench.dir = "/dev/shm/platter-cow-bench";
  for (int i = 3; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--runs")) bench.runs = std::atoi(argv[i + 1]);
    if (!std::strcmp(argv[i], "--only")) bench.only = argv[i + 1];
    if (!std::strcmp(argv[i], "--dir")) bench.dir = argv[i + 1];
  }
  MustDo("mkdir -p " + bench.dir);
  platter::bench::PrintHeader();
  Snapshots(bench);
  Chains(bench);
  MustDo("rm -rf " + bench.dir);
  return 0;
}
