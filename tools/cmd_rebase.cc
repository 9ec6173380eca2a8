// platter rebase and platter stream: another parent for an image, or none.
#include <CLI/CLI.hpp>

#include "cow/rebase.h"
#include "tools/command.h"
#include "tools/image_options.h"
#include "tools/interrupt.h"
#include "tools/progress.h"

namespace platter {
namespace {

// What both have in common.
class ParentCommand : public Command {
 public:
  int Run(Console& console) override {
    Result<> done = Change(console);
    if (done) return 0;
    console.Report(done.error());
    return 1;
  }

 protected:
  void DeclareCommon(CLI::App& app) {
    image_.Declare(app);
    app.add_option("-t", cache_, "none: bypass the page cache; default writeback")
        ->type_name("MODE");
    app.add_option("--threads", options_.threads, "Workers; default: one for each processor");
    app.add_flag("-p,--progress", progress_.show, "Show progress");
    app.add_flag("-q,--quiet", progress_.quiet, "Print errors only");
    app.add_option("FILE", path_)->required();
  }

  virtual Result<> Do(const Gate& gate, std::vector<std::string>* warnings) = 0;

  ImageOptions image_;
  RebaseOptions options_;
  ProgressOptions progress_;
  std::string path_, cache_ = "writeback";

 private:
  Result<> Change(Console& console) {
    options_.open = TRY(image_.ToDiskOptions(true));
    if (TRY(WantsDirect(cache_))) options_.open.file.direct = true;
    Progress progress;
    options_.progress = &progress;
    std::vector<std::string> warnings;
    Result<> done = [&] {
      CancelOnInterrupt cancel(progress);
      ProgressDisplay display(console, progress, progress_);
      return Do(image_.MakeGate(), &warnings);
    }();
    for (const std::string& warning : warnings) {
      if (!progress_.quiet) console.Warn(warning);
    }
    return done;
  }
};

class RebaseCommand : public ParentCommand {
 public:
  std::string_view name() const override { return "rebase"; }
  std::string_view summary() const override { return "Give an image another parent, or none"; }
  std::string_view examples() const override {
    return "  platter rebase -b newer.qcow2 -F qcow2 overlay.qcow2\n"
           "  platter rebase -b '' overlay.qcow2\n"
           "  platter rebase -u -b moved/base.qcow2 -F qcow2 overlay.qcow2\n"
           "The image reads the same afterwards: what its old parents hold and the new one does "
           "not\n"
           "is copied into it. With -u only the name changes, for a parent that was moved.\n";
  }

  void Declare(CLI::App& app) override {
    DeclareCommon(app);
    base_ = app.add_option("-b,--backing", parent_, "The new parent; '': none")->type_name("FILE");
    app.add_option("-F,--backing-format", parent_format_, "Format of the new parent")
        ->type_name("FMT");
    app.add_flag("-u,--unsafe", options_.unsafe,
                 "Change the record only, whatever the image reads as then");
  }

 protected:
  Result<> Do(const Gate& gate, std::vector<std::string>* warnings) override {
    if (base_->count() == 0 && !options_.unsafe) {
      return Fail(Code::kOutOfRange, "rebase needs a parent (-b), or -u to change the record only");
    }
    if (!parent_.empty()) {
      options_.parent = Reference{Reference::kParent, parent_, parent_format_};
    }
    return Rebase(path_, options_, gate, warnings);
  }

 private:
  CLI::Option* base_ = nullptr;
  std::string parent_, parent_format_;
};

class StreamCommand : public ParentCommand {
 public:
  std::string_view name() const override { return "stream"; }
  std::string_view summary() const override {
    return "Pull what parents hold into an image, so that it does without them";
  }
  std::string_view examples() const override {
    return "  platter stream overlay.qcow2\n"
           "  platter stream --base base.qcow2 overlay.qcow2\n"
           "Without --base the image has no parents afterwards. Interrupted, the image is as good "
           "as\n"
           "before: run it again. An image that another program has open is refused, unless that\n"
           "reads it with --force-share.\n";
  }

  void Declare(CLI::App& app) override {
    DeclareCommon(app);
    app.add_option("--base", base_, "The parent that stays, with those below it")
        ->type_name("FILE");
  }

 protected:
  Result<> Do(const Gate& gate, std::vector<std::string>* warnings) override {
    return Stream(path_, base_, options_, gate, warnings);
  }

 private:
  std::string base_;
};

}  // namespace

std::unique_ptr<Command> MakeRebaseCommand() { return std::make_unique<RebaseCommand>(); }
std::unique_ptr<Command> MakeStreamCommand() { return std::make_unique<StreamCommand>(); }

}  // namespace platter
