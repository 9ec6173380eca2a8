// platter compact: give back the space that an image's file no longer needs, in place.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <utility>

#include "formats/in_place_registry.h"
#include "io/buffer.h"
#include "tools/command.h"
#include "tools/image_options.h"
#include "tools/interrupt.h"
#include "tools/progress.h"
#include "tools/scan.h"

namespace platter {
namespace {

class CompactCommand : public Command {
 public:
  std::string_view name() const override { return "compact"; }
  std::string_view summary() const override { return "Make an image's file smaller, in place"; }
  std::string_view examples() const override {
    return "  platter compact -p disk.qcow2\n"
           "  platter compact --no-zeros disk.qcow2        without looking at what it holds\n"
           "Units that hold nothing but zeros are dropped, then what lies at the end of the file\n"
           "moves into the holes before it. It can be interrupted at any moment: the image reads "
           "the\n"
           "same, and the next run goes on.\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    app.add_flag("--no-zeros", no_zeros_, "Do not look for units that hold nothing but zeros");
    app.add_option("--output", output_, "human or json")->check(CLI::IsMember({"human", "json"}));
    app.add_option("--threads", threads_, "Workers; default: one for each processor");
    app.add_flag("-p,--progress", progress_.show, "Show progress");
    app.add_flag("-q,--quiet", progress_.quiet, "Print errors only");
    app.add_option("FILE", path_)->required();
  }

  int Run(Console& console) override {
    Result<> done = Compact(console);
    if (done) return 0;
    console.Report(done.error());
    return 1;
  }

 private:
  Result<> Compact(Console& console) {
    image_.quiet = progress_.quiet;
    const DiskOptions options = TRY(image_.ToDiskOptions(true));
    const Gate gate = image_.MakeGate();
    TRY(CheckCan(options, gate));
    if (!no_zeros_) TRY(DropZeros(console));
    std::vector<std::string> warnings;
    auto image = TRY(OpenTopImage(path_, options, gate, &warnings));
    const CompactReport report = TRY_AS(
        fmt::format("{} '{}'", image.format->name, Printable(path_, 4096)),
        FindInPlace(*image.format)
            ->compact(*image.store,
                      {.writable = true, .secret = options.secret, .opener = image.opener.get()}));
    Print(console, report);
    return {};
  }

  Result<> CheckCan(DiskOptions options, const Gate& gate) {
    options.file.writable = false;
    std::vector<std::string> warnings;
    auto image = TRY(OpenTopImage(path_, options, gate, &warnings));
    size_before_ = TRY(image.store->Size());
    if (FindInPlace(*image.format)) return {};
    return Fail(Code::kUnsupported, "'{}': {} images cannot be compacted in place",
                Printable(path_, 4096), image.format->name);
  }

  // Units of the image itself that hold zeros. Its parents are open: where they hold something, the
  // unit has to say that it is zero.
  Result<> DropZeros(Console& console) {
    auto disk = TRY(image_.Open(path_, true, console));
    const uint64_t unit = std::max<uint64_t>(disk->info().unit, 512);
    Progress progress;
    CancelOnInterrupt cancel(progress);
    ProgressDisplay display(console, progress, progress_);
    ScanOptions scan{.threads = threads_, .align = unit, .chunk = std::max(unit, kMiB)};
    scan.progress = &progress;
    TRY(Scan(disk->layer(0), scan, [&](const ScanChunk& chunk) -> Result<ScanFinish> {
      if (chunk.zero) return ScanFinish();
      Buffer buffer(chunk.range.length);
      TRY(Read(disk->layer(0), chunk.range.offset, buffer.bytes()));
      std::vector<Range> zeros;
      for (uint64_t at = 0; at < chunk.range.length; at += unit) {
        const uint64_t length = std::min(unit, chunk.range.length - at);
        if (!IsZero(std::as_const(buffer).bytes().subspan(at, length))) continue;
        zeros.push_back({chunk.range.offset + at, length});
      }
      return ScanFinish([this, &disk, zeros = std::move(zeros)]() -> Result<> {
        for (Range range : zeros) TRY(Drop(*disk, range));
        return {};
      });
    }));
    return disk->Flush();
  }

  // What comes from below is none of ours.
  Result<> Drop(Disk& disk, Range range) {
    std::array<Extent, 64> extents;
    while (!range.empty()) {
      size_t count = 0;
      {
        Pin pin = disk.Hold();
        count = TRY(disk.layer(0).Map(range, extents));
      }
      for (const Extent& extent : std::span(extents).first(count)) {
        if (extent.kind == Kind::kData) TRY(Zero(disk, extent.guest, /*may_unmap=*/true));
        range = Range::FromTo(extent.guest.end(), range.end());
      }
    }
    return {};
  }

  void Print(Console& console, const CompactReport& report) {
    if (output_ == "json") {
      nlohmann::ordered_json json = {{"size-before", size_before_},
                                     {"size-after", report.size_after},
                                     {"moved", report.moved}};
      return console.Print("{}\n", json.dump(4));
    }
    if (progress_.quiet) return;
    console.Print("{} bytes before, {} now; {} moved.\n", size_before_, report.size_after,
                  report.moved);
  }

  ImageOptions image_;
  std::string path_, output_ = "human";
  bool no_zeros_ = false;
  unsigned threads_ = 0;
  uint64_t size_before_ = 0;
  ProgressOptions progress_;
};

}  // namespace

std::unique_ptr<Command> MakeCompactCommand() { return std::make_unique<CompactCommand>(); }

}  // namespace platter
