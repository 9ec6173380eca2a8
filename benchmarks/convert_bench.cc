// convert and compare against qemu-img, alternating in one run, on a real Debian image: raw and
// qcow2. The command line is that of benchmarks/converting.h.
//
// The peer runs at its best (-W -m 16) unless the line says "default".
#include <string>

#include "benchmarks/converting.h"
#include "benchmarks/runner.h"

namespace {

using platter::bench::Compare;
using platter::bench::Converting;

void Conversions(const Converting& bench, const std::string& plain, const std::string& deflate) {
  const std::string best = "-W -m 16", zstd = "-c -o compression_type=zstd", raw = bench.raw();
  const std::string zstd_image = bench.Input("zstd.qcow2", best + " -O qcow2 " + zstd);
  const int runs = bench.runs(), few = bench.few();
  const Converting::Line lines[] = {
      {"raw to qcow2", "", best, raw, "raw", "qcow2", 0.5, runs},
      {"qcow2 to raw", "", best, plain, "qcow2", "raw", 0.6, runs},
      {"raw to qcow2 -c deflate", "-c", "-c " + best, raw, "raw", "qcow2", 0.25, few, true},
      {"raw to qcow2 -c deflate, default", "-c", "-c", raw, "raw", "qcow2", 0.15, 1, true},
      {"raw to qcow2 -c --level 9", "-c --level 9", "-c " + best, raw, "raw", "qcow2", 0, 1, true},
      {"raw to qcow2 -c zstd", zstd, zstd + " " + best, raw, "raw", "qcow2", 0.8, few, true},
      {"raw to qcow2 -c zstd, default", zstd, zstd, raw, "raw", "qcow2", 0.5, few, true},
      {"deflate qcow2 to raw", "", best, deflate, "qcow2", "raw", 0.5, runs},
      {"zstd qcow2 to raw", "", best, zstd_image, "qcow2", "raw", 0.7, runs},
      {"compressed copy deflate", "-c", "-c " + best, deflate, "qcow2", "qcow2", 0.1, 1, true},
      {"compressed copy zstd", zstd, zstd + " " + best, zstd_image, "qcow2", "qcow2", 0.1, few,
       true},
  };
  for (const Converting::Line& line : lines) bench.Convert(line);
}

void Comparisons(const Converting& bench, const std::string& plain, const std::string& deflate) {
  if (!bench.Wanted("compare")) return;
  const std::string with_plain = " compare -q -f raw -F qcow2 " + bench.raw() + " " + plain;
  PrintLine("compare raw with qcow2",
            Compare(bench.platter() + with_plain, "qemu-img" + with_plain, "", bench.runs()), 0.6);
  const std::string with_copy = " compare -q -f qcow2 -F qcow2 " + plain + " " + deflate;
  PrintLine("compare qcow2 with itself, copied",
            Compare(bench.platter() + with_copy, "qemu-img" + with_copy, "", bench.few()), 0.6);
}

}  // namespace

int main(int argc, char** argv) {
  const auto bench = Converting::FromCommandLine(argc, argv);
  if (!bench) return 2;
  const std::string plain = bench->Input("plain.qcow2", "-W -m 16 -O qcow2");
  const std::string deflate = bench->Input("deflate.qcow2", "-W -m 16 -O qcow2 -c");
  platter::bench::PrintHeader();
  Conversions(*bench, plain, deflate);
  Comparisons(*bench, plain, deflate);
  return bench->CleanUp() ? 0 : 1;
}
