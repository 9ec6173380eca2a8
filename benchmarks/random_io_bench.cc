// Scattered 4 KiB reads and writes through the library, against `qemu-img bench` on the same image
// with the same pattern, alternating in one run.
//
//   random_io_bench PLATTER IMAGE.raw [--count N] [--runs N] [--dir DIR]
//
// The image is converted to qcow2 in DIR (/dev/shm/platter-bench), which is emptied of it at the
// end.
//
// The pattern is qemu-img bench's: each request starts STEP bytes after the last, around the end of
// the disk; STEP is chosen so that neighbours are never asked for. Depth 1 is one request at a
// time; at depth 32 qemu keeps 32 in flight, and ours are spread over one thread a core.
// Writes go to a copy of the image.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "cow/disk.h"
#include "io/buffer.h"
#include "io/engine/engine.h"

namespace {

using platter::Buffer;
using platter::Disk;

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kStep = 4096 * 40503;  // odd in blocks: visits all of a power-of-two disk

[[noreturn]] void Die(const std::string& text) {
  std::fprintf(stderr, "random_io_bench: %s\n", text.c_str());
  std::exit(1);
}

// Seconds for `count` requests by `threads` workers.
double Ours(const std::string& path, bool write, unsigned threads, uint64_t count) {
  platter::DiskOptions options;
  options.format = "qcow2";
  options.file.writable = write;
  std::vector<std::string> warnings;
  auto disk = Disk::Open(path, options, platter::Gate({}), &warnings);
  if (!disk) Die(disk.error().text());
  uint64_t size = platter::RoundDown((*disk)->info().size, kBlock);
  auto start = std::chrono::steady_clock::now();
  {
    std::vector<std::jthread> workers;
    workers.reserve(threads);
    for (unsigned worker = 0; worker < threads; ++worker) {
      workers.emplace_back([&, worker] {
        Buffer buffer(kBlock);
        std::memset(buffer.data(), 0x5a, kBlock);
        for (uint64_t i = worker; i < count; i += threads) {
          uint64_t at = i * kStep % size;
          auto done = write ? Write(**disk, at, std::as_const(buffer).bytes())
                            : Read(**disk, at, buffer.bytes());
          if (!done) Die(done.error().text());
        }
      });
    }
  }
  if (write) {
    if (auto flushed = (*disk)->Flush(); !flushed) Die(flushed.error().text());
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double Peer(const std::string& path, bool write, unsigned depth, uint64_t count) {
  std::string command = "qemu-img bench -f qcow2 -c " + std::to_string(count) + " -d " +
                        std::to_string(depth) + " -s 4096 -S " + std::to_string(kStep) +
                        (write ? " -w --pattern=90 " : " ") + path;
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) Die("cannot run qemu-img");
  double seconds = 0;
  char line[512];
  while (std::fgets(line, sizeof line, pipe))
    std::sscanf(line, "Run completed in %lf seconds", &seconds);
  if (pclose(pipe) != 0 || seconds == 0) Die("failed: " + command);
  return seconds;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void Shell(const std::string& command) {
  if (std::system(command.c_str()) != 0) Die("failed: " + command);
}

void Copy(const std::string& from, const std::string& to) {
  Shell("cp --sparse=always " + from + " " + to);
}

void Line(const std::string& image, bool write, unsigned depth, uint64_t count, int runs) {
  unsigned threads = depth == 1 ? 1 : std::max(1u, std::thread::hardware_concurrency());
  std::vector<double> ours, peer, speedups;
  for (int run = -1; run < runs; ++run) {
    std::string a = write ? image + ".ours" : image, b = write ? image + ".peer" : image;
    if (write) Copy(image, a), Copy(image, b);
    double our_time = Ours(a, write, threads, count), peer_time = Peer(b, write, depth, count);
    if (write) std::remove(a.c_str()), std::remove(b.c_str());
    if (run < 0) continue;
    ours.push_back(our_time);
    peer.push_back(peer_time);
    speedups.push_back(peer_time / our_time);
  }
  double speedup = Median(speedups), requests = static_cast<double>(count);
  std::printf("4k %-6s depth %-3u  ours %9.0f/s  peer %9.0f/s  times %.2f  goal >= 2.00 %s\n",
              write ? "write" : "read", depth, requests / Median(ours), requests / Median(peer),
              speedup, speedup < 2 ? "missed" : "");
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) Die("usage: random_io_bench PLATTER IMAGE.raw [--count N] [--runs N] [--dir DIR]");
  uint64_t count = 200'000;
  int runs = 5;
  std::string dir = "/dev/shm/platter-bench";
  for (int i = 3; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--count")) count = std::strtoull(argv[i + 1], nullptr, 10);
    if (!std::strcmp(argv[i], "--runs")) runs = std::atoi(argv[i + 1]);
    if (!std::strcmp(argv[i], "--dir")) dir = argv[i + 1];
  }
  const std::string image = dir + "/random.qcow2";
  Shell("mkdir -p " + dir + " && " + argv[1] + " convert -q --force -f raw -O qcow2 " + argv[2] +
        " " + image);
  for (bool write : {false, true}) {
    for (unsigned depth : {1u, 32u}) Line(image, write, depth, count, runs);
  }
  std::remove(image.c_str());
}
