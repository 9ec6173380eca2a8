#include "benchmarks/converting.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "benchmarks/runner.h"

namespace platter::bench {

std::optional<Converting> Converting::FromCommandLine(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s PLATTER IMAGE.raw [--runs N] [--only SUBSTRING] [--dir DIR]\n",
                 argv[0]);
    return std::nullopt;
  }
  Converting bench;
  bench.platter_ = argv[1];
  for (int i = 3; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--runs")) bench.runs_ = std::atoi(argv[i + 1]);
    if (!std::strcmp(argv[i], "--only")) bench.only_ = argv[i + 1];
    if (!std::strcmp(argv[i], "--dir")) bench.dir_ = argv[i + 1];
  }
  bench.raw_ = bench.In("source.raw");
  const std::string copy =
      "mkdir -p " + bench.dir_ + " && cp --sparse=always -n " + argv[2] + " " + bench.raw_;
  if (std::system(copy.c_str()) != 0) return std::nullopt;
  return bench;
}

std::string Converting::Input(const std::string& name, const std::string& options) const {
  const std::string path = In(name);
  const std::string make = "qemu-img convert -f raw " + options + " " + raw_ + " " + path;
  if (FileSize(path) == 0 && std::system(make.c_str()) != 0) std::exit(1);
  return path;
}

void Converting::Convert(const Line& line) const {
  if (!Wanted(line.name)) return;
  const std::string formats =
      " -f " + line.source_format + " -O " + line.target_format + " " + line.source + " ";
  Comparison result =
      Compare(platter_ + " convert -q " + line.ours + formats + Out("ours"),
              "qemu-img convert -q " + line.peer + formats + Out("peer"), Clean(), line.runs);
  // Only the last output of the peer is there now; make ours anew.
  const std::string judge = platter_ + " convert -q --force " + line.ours + formats + Out("ours") +
                            " && qemu-img compare -q -f " + line.source_format + " -F " +
                            line.target_format + " " + line.source + " " + Out("ours");
  result.ours.ok = result.ours.ok && std::system(judge.c_str()) == 0;
  PrintLine(line.name, result, line.goal);
  if (!line.sizes) return;
  const double size =
      static_cast<double>(FileSize(Out("ours"))) / static_cast<double>(FileSize(Out("peer")));
  std::printf("%-34s %58s size ratio %.4f\n", "", "", size);
}

bool Converting::CleanUp() const { return std::system(Clean().c_str()) == 0; }

}  // namespace platter::bench
