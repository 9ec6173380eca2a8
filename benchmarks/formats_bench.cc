// convert to and from the formats of other programs, against qemu-img, alternating in one run, on a
// real Debian image. The command line is that of benchmarks/converting.h.
//
// The peer runs in the faster of its two modes, in order or with -W -m 16, which is tried before
// each line; streams it can only write in order.
#include <cstdio>
#include <string>

#include "benchmarks/converting.h"
#include "benchmarks/runner.h"

namespace {

using platter::bench::Converting;
using platter::bench::RunOnce;

constexpr const char kParallel[] = "-W -m 16";

// The options of the faster mode, by two runs of each.
std::string BestMode(const Converting& bench, const Converting::Line& line) {
  const std::string target = bench.In("out.peer");
  double best[2] = {1e9, 1e9};
  for (int round = 0; round < 2; ++round) {
    for (int parallel = 0; parallel < 2; ++parallel) {
      std::remove(target.c_str());
      const auto run = RunOnce("qemu-img convert -q " + std::string(parallel ? kParallel : "") +
                               " " + line.peer + " -f " + line.source_format + " -O " +
                               line.target_format + " " + line.source + " " + target);
      if (run.ok && run.seconds < best[parallel]) best[parallel] = run.seconds;
    }
  }
  return best[1] < best[0] ? kParallel : "";
}

void Both(const Converting& bench, Converting::Line line) {
  if (!bench.Wanted(line.name)) return;
  line.peer += " " + BestMode(bench, line);
  bench.Convert(line);
}

// The image written as `format` with `options`, and read back as QEMU writes it.
void WriteAndRead(const Converting& bench, const std::string& name, const std::string& format,
                  const std::string& options, double goal) {
  Both(bench, {"write " + name, options, options, bench.raw(), "raw", format, goal, bench.runs()});
  if (!bench.Wanted("read " + name)) return;
  const std::string image = bench.Input("in." + name, "-O " + format + " " + options);
  Both(bench, {"read " + name, "", "", image, format, "raw", goal, bench.runs()});
}

void Streams(const Converting& bench) {
  const std::string stream = "-o subformat=streamOptimized";
  bench.Convert({"write VMDK stream", stream, stream, bench.raw(), "raw", "vmdk", 0.08, bench.few(),
                 /*sizes=*/true});
  if (!bench.Wanted("read VMDK stream")) return;
  const std::string image = bench.Input("in.stream", "-O vmdk " + stream);
  Both(bench, {"read VMDK stream", "", "", image, "vmdk", "raw", 0.35, bench.runs()});
}

}  // namespace

int main(int argc, char** argv) {
  const auto bench = Converting::FromCommandLine(argc, argv);
  if (!bench) return 2;
  platter::bench::PrintHeader();
  Streams(*bench);
  WriteAndRead(*bench, "VMDK", "vmdk", "-o subformat=monolithicSparse", 0.6);
  WriteAndRead(*bench, "VDI", "vdi", "", 0.6);
  WriteAndRead(*bench, "VHDX", "vhdx", "", 0.6);
  WriteAndRead(*bench, "VHD", "vpc", "-o force_size=on", 0);
  return bench->CleanUp() ? 0 : 1;
}
