// platter compare: whether two images hold the same guest bytes.
#include <CLI/CLI.hpp>

#include "io/engine/engine.h"
#include "tools/command.h"
#include "tools/image_options.h"
#include "tools/interrupt.h"
#include "tools/progress.h"

namespace platter {
namespace {

class CompareCommand : public Command {
 public:
  std::string_view name() const override { return "compare"; }
  std::string_view summary() const override { return "Compare the content of two images"; }
  std::string_view examples() const override {
    return "  platter compare disk.raw disk.qcow2\n"
           "  platter compare -s -f raw -F qcow2 /dev/vg0/guest backup.qcow2\n"
           "Exit code: 0 identical, 1 different, 2 could not be compared.\n";
  }
  int usage_exit_code() const override { return 2; }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    image_.DeclareParent(app);
    app.add_option("-F", second_format_, "Format of the second image")->type_name("FMT");
    app.add_flag("-s,--strict", strict_,
                 "Different sizes are a difference, whatever the rest holds");
    app.add_flag("-p,--progress", progress_.show, "Show progress");
    app.add_flag("-q,--quiet", progress_.quiet, "Print errors only");
    app.add_option("--threads", threads_, "Workers; default: one for each processor");
    app.add_option("FILE1", first_)->required();
    app.add_option("FILE2", second_)->required();
  }

  int Run(Console& console) override {
    Result<bool> same = Compare(console);
    if (same) return *same ? 0 : 1;
    console.Report(same.error());
    return 2;
  }

 private:
  Result<bool> Compare(Console& console) {
    image_.quiet = progress_.quiet;
    auto a = TRY(image_.Open(first_, false, console));
    ImageOptions second = image_;
    second.format = second_format_;
    second.parent.clear();  // it is the first image's
    second.parent_format.clear();
    auto b = TRY(second.Open(second_, false, console));

    if (a->info().size != b->info().size) {
      if (strict_) {
        Say(console, "Strict mode: Image size mismatch!\n");
        return false;
      }
      Say(console, "Warning: Image size mismatch!\n");
    }
    Progress progress;
    std::optional<uint64_t> difference;
    {
      CancelOnInterrupt cancel(progress);
      ProgressDisplay display(console, progress, progress_);
      CopyOptions options;
      options.threads = threads_;
      options.progress = &progress;
      difference = TRY(platter::Compare(*a, *b, options));
    }
    if (!difference) {
      Say(console, "Images are identical.\n");
    } else {
      Say(console, fmt::format("Content mismatch at offset {}!\n", *difference));
    }
    return !difference;
  }

  void Say(Console& console, const std::string& text) {
    if (!progress_.quiet) console.Out(text);
  }

  ImageOptions image_;
  std::string first_, second_, second_format_;
  bool strict_ = false;
  unsigned threads_ = 0;
  ProgressOptions progress_;
};

}  // namespace

std::unique_ptr<Command> MakeCompareCommand() { return std::make_unique<CompareCommand>(); }

}  // namespace platter
