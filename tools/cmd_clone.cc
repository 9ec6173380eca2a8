// platter clone: many images over one, or copies of it.
#include <CLI/CLI.hpp>

#include <filesystem>

#include "cow/overlay.h"
#include "tools/command.h"
#include "tools/image_options.h"
#include "tools/interrupt.h"
#include "tools/progress.h"

namespace platter {
namespace {

class CloneCommand : public Command {
 public:
  std::string_view name() const override { return "clone"; }
  std::string_view summary() const override { return "Make overlays of an image, or copies"; }
  std::string_view examples() const override {
    return "  platter clone base.qcow2 web.qcow2 mail.qcow2\n"
           "  platter clone -n 20 base.qcow2 guests/\n"
           "  platter clone --full golden.raw a.raw\n"
           "With -n the clones are numbered: guests/base-01.qcow2 and so on. A full clone shares "
           "its\n"
           "blocks with the base where the file system can (btrfs, xfs), and copies them "
           "elsewhere.\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    app.add_option("-n,--count", count_, "How many clones to make in the folder TARGET")
        ->check(CLI::Range(1, 1'000'000));
    app.add_option("-O,--target-format", options_.format,
                   "Format of the clones; default: that of the base where it knows parents")
        ->type_name("FMT");
    app.add_option("-o,--options", lists_, "Options of that format")
        ->type_name("NAME=VALUE")
        ->allow_extra_args(false);
    app.add_flag("--full", options_.full, "Clones that do without the base");
    app.add_flag("--force", options_.replace, "Replace existing files");
    app.add_flag("-p,--progress", progress_.show, "Show progress (of each full clone)");
    app.add_flag("-q,--quiet", progress_.quiet, "Print errors only");
    app.add_option("BASE", base_)->required();
    app.add_option("TARGET", targets_, "New images; with -n, the folder for them")
        ->required()
        ->expected(1, 100'000);
  }

  int Run(Console& console) override {
    Result<> done = CloneAll(console);
    if (done) return 0;
    console.Report(done.error());
    return 1;
  }

 private:
  Result<> CloneAll(Console& console) {
    options_.open = TRY(image_.ToDiskOptions(false));
    options_.options = TRY(ParseOptionList(lists_));
    if (count_ > 0) TRY(NumberTargets());
    Progress progress;
    options_.copy.progress = &progress;
    std::vector<std::string> warnings;
    Result<> done = [&] {
      CancelOnInterrupt cancel(progress);
      ProgressDisplay display(console, progress, progress_);
      return Clone(base_, targets_, options_, image_.MakeGate(), &warnings);
    }();
    if (progress_.quiet) return done;
    for (const std::string& warning : warnings) console.Warn(warning);
    if (done) console.Print("Made {} clone{}.\n", targets_.size(), targets_.size() == 1 ? "" : "s");
    return done;
  }

  Result<> NumberTargets() {
    namespace fs = std::filesystem;
    std::error_code error;
    if (targets_.size() != 1 || !fs::is_directory(targets_[0], error)) {
      return Fail(Code::kOutOfRange, "-n needs one target, a folder that exists");
    }
    const fs::path folder = targets_[0], base = base_;
    std::string ending = base.extension().string();
    if (!options_.format.empty()) ending = "." + options_.format;
    const size_t digits = std::to_string(count_).size();
    targets_.clear();
    for (unsigned i = 1; i <= count_; ++i) {
      targets_.push_back(
          (folder / fmt::format("{}-{:0{}}{}", base.stem().string(), i, digits, ending)).string());
    }
    return {};
  }

  ImageOptions image_;
  CloneOptions options_;
  ProgressOptions progress_;
  unsigned count_ = 0;
  std::string base_;
  std::vector<std::string> targets_, lists_;
};

}  // namespace

std::unique_ptr<Command> MakeCloneCommand() { return std::make_unique<CloneCommand>(); }

}  // namespace platter
