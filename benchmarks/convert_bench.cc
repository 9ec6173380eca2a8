// convert and compare against qemu-img, alternating in one run, on tmpfs, on a
// real Debian image.
//
//   convert_bench PLATTER IMAGE.raw [--runs N] [--only SUBSTRING] [--dir DIR]
//
// The peer runs at its best (-W -m 16) unless the line says "default". Every
// output of ours is judged by `qemu-img compare` after the timing; a line whose
// output differs says FAILED.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "benchmarks/runner.h"

namespace {

using platter::bench::Compare;
using platter::bench::Comparison;
using platter::bench::FileSize;

struct Bench {
  std::string platter, raw, dir, only;
  int runs = 5;

  std::string out(const char* who) const { return dir + "/out." + who; }
  std::string clean() const { return "rm -f " + out("ours") + " " + out("peer"); }
  bool Wanted(const std::string& name) const { return name.find(only) != std::string::npos; }

  // Runs both, judges ours, prints; `arguments` follow the program's name on
  // both sides.
  void Convert(const std::string& name, const std::string& ours, const std::string& peer,
               const std::string& source, const std::string& source_format,
               const std::string& target_format, double goal, int count) {
    if (!Wanted(name)) return;
    Comparison result = Compare(platter + " convert -q " + ours + " -f " + source_format + " -O " +
                                    target_format + " " + source + " " + out("ours"),
                                "qemu-img convert -q " + peer + " -f " + source_format + " -O " +
                                    target_format + " " + source + " " + out("peer"),
                                clean(), count);
    // Only the last output of each is there now: the peer's pair was cleaned
    // away; make ours anew.
    std::string again = platter + " convert -q --force " + ours + " -f " + source_format + " -O " +
                        target_format + " " + source + " " + out("ours");
    result.ours.ok =
        result.ours.ok && std::system((again + " && qemu-img compare -q -f " + source_format +
                                       " -F " + target_format + " " + source + " " + out("ours"))
                                          .c_str()) == 0;
    PrintLine(name, result, goal);
    if (ours.find("-c") != std::string::npos) {
      double size =
          static_cast<double>(FileSize(out("ours"))) / static_cast<double>(FileSize(out("peer")));
      std::printf("%-34s %58s size ratio %.4f\n", "", "", size);
    }
  }
};

void Inputs(const Bench& bench) {
  auto make = [&](const std::string& options, const std::string& name) {
    std::string path = bench.dir + "/" + name;
    if (FileSize(path) == 0 && std::system(("qemu-img convert -W -m 16 -f raw -O qcow2 " + options +
                                            " " + bench.raw + " " + path)
                                               .c_str()) != 0)
      std::exit(1);
  };
  make("", "plain.qcow2");
  make("-c", "deflate.qcow2");
  make("-c -o compression_type=zstd", "zstd.qcow2");
}

void Run(Bench& bench) {
  const std::string best = "-W -m 16", zstd = "-c -o compression_type=zstd";
  const std::string plain = bench.dir + "/plain.qcow2", deflate = bench.dir + "/deflate.qcow2",
                    zstd_image = bench.dir + "/zstd.qcow2";
  int few = bench.runs > 3 ? 3 : bench.runs;
  platter::bench::PrintHeader();
  bench.Convert("raw to qcow2", "", best, bench.raw, "raw", "qcow2", 0.5, bench.runs);
  bench.Convert("qcow2 to raw", "", best, plain, "qcow2", "raw", 0.6, bench.runs);
  bench.Convert("raw to qcow2 -c deflate", "-c", "-c " + best, bench.raw, "raw", "qcow2", 0.25,
                few);
  bench.Convert("raw to qcow2 -c deflate, default", "-c", "-c", bench.raw, "raw", "qcow2", 0.15, 1);
  bench.Convert("raw to qcow2 -c --level 9", "-c --level 9", "-c " + best, bench.raw, "raw",
                "qcow2", 0, 1);
  bench.Convert("raw to qcow2 -c zstd", zstd, zstd + " " + best, bench.raw, "raw", "qcow2", 0.8,
                few);
  bench.Convert("raw to qcow2 -c zstd, default", zstd, zstd, bench.raw, "raw", "qcow2", 0.5, few);
  bench.Convert("deflate qcow2 to raw", "", best, deflate, "qcow2", "raw", 0.5, bench.runs);
  bench.Convert("zstd qcow2 to raw", "", best, zstd_image, "qcow2", "raw", 0.7, bench.runs);
  bench.Convert("compressed copy deflate", "-c", "-c " + best, deflate, "qcow2", "qcow2", 0.1, 1);
  bench.Convert("compressed copy zstd", zstd, zstd + " " + best, zstd_image, "qcow2", "qcow2", 0.1,
                few);
  if (bench.Wanted("compare")) {
    PrintLine(
        "compare raw with qcow2",
        Compare(bench.platter + " compare -q -f raw -F qcow2 " + bench.raw + " " + plain,
                "qemu-img compare -q -f raw -F qcow2 " + bench.raw + " " + plain, "", bench.runs),
        0.6);
    PrintLine("compare qcow2 with itself, copied",
              Compare(bench.platter + " compare -q -f qcow2 -F qcow2 " + plain + " " + deflate,
                      "qemu-img compare -q -f qcow2 -F qcow2 " + plain + " " + deflate, "", few),
              0.6);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr,
                 "usage: %s PLATTER IMAGE.raw [--runs N] [--only SUBSTRING] "
                 "[--dir DIR]\n",
                 argv[0]);
    return 2;
  }
  Bench bench;
  bench.platter = argv[1];
  bench.dir = "/dev/shm/platter-bench";
  for (int i = 3; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--runs")) bench.runs = std::atoi(argv[i + 1]);
    if (!std::strcmp(argv[i], "--only")) bench.only = argv[i + 1];
    if (!std::strcmp(argv[i], "--dir")) bench.dir = argv[i + 1];
  }
  std::string copy = "mkdir -p " + bench.dir + " && cp --sparse=always -n " + argv[2] + " " +
                     bench.dir + "/source.raw";
  if (std::system(copy.c_str()) != 0) return 1;
  bench.raw = bench.dir + "/source.raw";
  Inputs(bench);
  Run(bench);
  return std::system(bench.clean().c_str()) == 0 ? 0 : 1;
}
