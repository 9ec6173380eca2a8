// platter commit: what an overlay holds goes into its parent.
#include <CLI/CLI.hpp>

#include "base/size.h"
#include "cow/commit.h"
#include "tools/command.h"
#include "tools/image_options.h"
#include "tools/interrupt.h"
#include "tools/progress.h"

namespace platter {
namespace {

class CommitCommand : public Command {
 public:
  std::string_view name() const override { return "commit"; }
  std::string_view summary() const override {
    return "Write what an overlay holds into one of its parents";
  }
  std::string_view examples() const override {
    return "  platter commit overlay.qcow2\n"
           "  platter commit -p -b base.qcow2 top.qcow2\n"
           "The overlay is empty afterwards; with -d, or with a base that is not its own parent, "
           "it\n"
           "keeps what it holds, and images in between are worth nothing any more. It reads the "
           "same\n"
           "all the time, also if the work is interrupted: run it again then.\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    app.add_option("-b,--base", options_.base, "Into which parent; without it, the next one")
        ->type_name("FILE");
    app.add_flag("-d,--keep", options_.keep, "Do not empty the overlay");
    app.add_option("-t", cache_, "none: bypass the page cache; default writeback")
        ->type_name("MODE");
    app.add_option("-r,--rate-limit", rate_, "Bytes per second at most")->type_name("SIZE");
    app.add_option("--threads", options_.copy.threads, "Workers; default: one for each processor");
    app.add_flag("-p,--progress", progress_.show, "Show progress");
    app.add_flag("-q,--quiet", progress_.quiet, "Print errors only");
    app.add_option("FILE", path_)->required();
  }

  int Run(Console& console) override {
    Result<> done = CommitImage(console);
    if (done) return 0;
    console.Report(done.error());
    return 1;
  }

 private:
  Result<> CommitImage(Console& console) {
    if (!rate_.empty()) options_.copy.bytes_per_second = TRY_AS("-r", ParseSize(rate_));
    options_.open = TRY(image_.ToDiskOptions(true));
    if (TRY(WantsDirect(cache_))) options_.open.file.direct = true;
    options_.open.file.writable = false;
    Progress progress;
    options_.copy.progress = &progress;
    std::vector<std::string> warnings;
    Result<CommitOutcome> outcome = [&] {
      CancelOnInterrupt cancel(progress);
      ProgressDisplay display(console, progress, progress_);
      return Commit(path_, options_, image_.MakeGate(), &warnings);
    }();
    for (const std::string& warning : warnings) {
      if (!progress_.quiet) console.Warn(warning);
    }
    if (!outcome) return std::unexpected(std::move(outcome.error()));
    if (!progress_.quiet) console.Out("Image committed.\n");
    return {};
  }

  ImageOptions image_;
  CommitOptions options_;
  ProgressOptions progress_;
  std::string path_, rate_, cache_ = "writeback";
};

}  // namespace

std::unique_ptr<Command> MakeCommitCommand() { return std::make_unique<CommitCommand>(); }

}  // namespace platter
