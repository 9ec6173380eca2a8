// platter bench: how fast requests to an image are.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>

#include "base/size.h"
#include "io/buffer.h"
#include "io/engine/engine.h"
#include "tools/command.h"
#include "tools/image_options.h"
#include "tools/interrupt.h"

namespace platter {
namespace {

class BenchCommand : public Command {
 public:
  std::string_view name() const override { return "bench"; }
  std::string_view summary() const override { return "Time reads or writes of an image"; }
  std::string_view examples() const override {
    return "  platter bench -c 100000 disk.qcow2\n"
           "  platter bench -w -s 4k -S 1028k -c 20000 --flush-interval 1000 scratch.qcow2\n"
           "With -w what the image holds is overwritten.\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    app.add_option("-c", count_, "How many requests; default 75000")->check(CLI::PositiveNumber);
    app.add_option("-d", depth_, "How many at once; default 64")->check(CLI::PositiveNumber);
    app.add_option("-s", size_, "Bytes of each; default 4k")->type_name("SIZE");
    app.add_option("-S", step_, "From one to the next; default: as many as each has")
        ->type_name("SIZE");
    app.add_option("-o", offset_, "Where the first one starts; default 0")->type_name("SIZE");
    app.add_flag("-w", write_, "Write instead of reading");
    app.add_option("--pattern", pattern_, "The byte that is written; default 0")
        ->check(CLI::Range(0, 255));
    app.add_option("--flush-interval", flush_interval_, "Flush after so many writes");
    app.add_flag("--no-drain", no_drain_, "Accepted: a flush never waits for other requests");
    app.add_option("-t", cache_, "none: bypass the page cache; default writeback")
        ->type_name("MODE");
    app.add_option("-i", ignored_, "Accepted: how requests are made is chosen by itself")
        ->type_name("AIO");
    app.add_flag("-n", native_, "Accepted, as -i");
    app.add_flag("-q,--quiet", image_.quiet, "Print errors only");
    app.add_option("FILE", path_)->required();
  }

  int Run(Console& console) override {
    Result<> done = Bench(console);
    if (done) return 0;
    console.Report(done.error());
    return 1;
  }

 private:
  struct Pattern {
    uint64_t size, step, offset;
  };

  Result<Pattern> ReadPattern(uint64_t disk) const {
    Pattern pattern{};
    pattern.size = TRY_AS("-s", ParseSize(size_));
    pattern.step = step_.empty() ? pattern.size : TRY_AS("-S", ParseSize(step_));
    pattern.offset = offset_.empty() ? 0 : TRY_AS("-o", ParseSize(offset_));
    if (pattern.size == 0 || pattern.size > kGiB || pattern.size > disk) {
      return Fail(Code::kOutOfRange, "-s {}: requests have 1 byte to 1 GiB, within the disk",
                  size_);
    }
    if (!FitsIn(pattern.offset, pattern.size, disk)) {
      return Fail(Code::kOutOfRange, "-o {}: the disk has {} bytes", offset_, disk);
    }
    return pattern;
  }

  Result<> Bench(Console& console) {
    if (flush_interval_ > 0 && !write_) {
      return Fail(Code::kOutOfRange, "--flush-interval goes with -w");
    }
    DiskOptions options = TRY(image_.ToDiskOptions(write_));
    const bool direct = TRY(WantsDirect(cache_));
    options.file.direct = options.file.direct || direct;
    std::vector<std::string> warnings;
    auto disk = TRY(Disk::Open(path_, options, image_.MakeGate(), &warnings));
    const Pattern pattern = TRY(ReadPattern(disk->info().size));
    if (!image_.quiet) {
      for (const std::string& warning : warnings) console.Warn(warning);
      console.Print(
          "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size "
          "{})\n",
          count_, write_ ? "write" : "read", pattern.size, depth_, pattern.offset, pattern.step);
      if (flush_interval_ > 0) console.Print("Sending flush every {} requests\n", flush_interval_);
    }
    const auto start = std::chrono::steady_clock::now();
    TRY(SendAll(*disk, pattern, options.file.direct));
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (!image_.quiet) console.Print("Run completed in {:.3f} seconds.\n", took.count());
    return write_ ? disk->Flush() : Result<>();
  }

  // Cached requests do not wait: as many workers as there are processors do the most.
  Result<> SendAll(Disk& disk, const Pattern& pattern, bool direct) {
    const unsigned processors = std::max(1u, std::thread::hardware_concurrency());
    const uint64_t most = direct ? 64 : processors;
    Work work{disk, pattern, {}, {}, {}, {}};
    {
      std::vector<std::jthread> others;
      for (uint64_t i = 1; i < std::min({uint64_t{depth_}, uint64_t{count_}, most}); ++i) {
        others.emplace_back([&] { Send(work); });
      }
      Send(work);
    }
    if (work.failure) return std::unexpected(std::move(*work.failure));
    if (Interrupted()) return Fail(Code::kRefused, "cancelled");
    return {};
  }

  struct Work {
    Disk& disk;
    const Pattern& pattern;
    std::atomic<uint64_t> next;
    std::atomic<bool> stop;
    Mutex mutex;  // guards failure
    std::optional<Error> failure;
  };

  void Send(Work& work) {
    const Pattern& p = work.pattern;
    Buffer buffer(p.size);
    std::memset(buffer.data(), static_cast<int>(pattern_), p.size);
    const uint64_t places = work.disk.info().size - p.size + 1;
    while (!work.stop && !Interrupted()) {
      const uint64_t number = work.next++;
      if (number >= count_) break;
      const auto ahead = static_cast<unsigned __int128>(number) * p.step + p.offset;
      Result<> done = SendOne(work.disk, static_cast<uint64_t>(ahead % places), buffer.bytes());
      if (done && flush_interval_ > 0 && (number + 1) % flush_interval_ == 0) {
        done = work.disk.Flush();
      }
      if (done) continue;
      std::lock_guard lock(work.mutex);
      if (!work.failure) work.failure = std::move(done.error());
      work.stop = true;
    }
  }

  Result<> SendOne(Disk& disk, uint64_t at, Bytes bytes) const {
    return write_ ? Write(disk, at, ConstBytes(bytes)) : Read(disk, at, bytes);
  }

  ImageOptions image_;
  uint64_t count_ = 75000;
  unsigned depth_ = 64, pattern_ = 0;
  uint64_t flush_interval_ = 0;
  std::string path_, size_ = "4k", step_, offset_, cache_ = "writeback", ignored_;
  bool write_ = false, no_drain_ = false, native_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeBenchCommand() { return std::make_unique<BenchCommand>(); }

}  // namespace platter
