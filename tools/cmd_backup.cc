// platter backup: a full copy of a disk, or an overlay with what has changed since.
#include <CLI/CLI.hpp>

#include "tools/command.h"
#include "tools/convert.h"
#include "tools/image_options.h"

namespace platter {
namespace {

class BackupCommand : public Command {
 public:
  std::string_view name() const override { return "backup"; }
  std::string_view summary() const override {
    return "Back up an image in full, or what has changed since the backup before";
  }
  std::string_view examples() const override {
    return "  platter backup --full --new-bitmap daily disk.qcow2 full.qcow2\n"
           "  platter backup --since daily --new-bitmap daily -b full.qcow2 disk.qcow2 day1.qcow2\n"
           "  platter backup --since daily --new-bitmap daily -b day1.qcow2 disk.qcow2 day2.qcow2\n"
           "Restore with:\n"
           "  platter convert -O qcow2 day2.qcow2 disk.qcow2\n"
           "Each backup is an overlay of the one before and reads as the disk did. A bitmap begins\n"
           "anew only when the backup is whole; if that is interrupted, the next backup holds more\n"
           "than it must, and never less.\n";
  }

  void Declare(CLI::App& app) override {
    ConvertOptions& o = options_;
    o.target_format = "qcow2";
    o.source.Declare(app);
    o.source.DeclareParent(app);
    app.add_flag("--full", full_, "Back up all of the disk");
    app.add_option("--since", o.since, "Back up what is dirty in this bitmap of the image")
        ->type_name("BITMAP");
    app.add_option("-b,--backing", o.parent, "With --since: the backup before, which FILE overlays")
        ->type_name("FILE");
    app.add_option("-F,--backing-format", o.parent_format, "Format of that backup")
        ->type_name("FMT");
    app.add_option("--new-bitmap", o.new_bitmap,
                   "From this backup on BITMAP says what is written: it is made, or cleared where "
                   "it is there; may be that of --since")
        ->type_name("BITMAP");
    app.add_option("-O,--target-format", o.target_format,
                   "Format of the backup; default qcow2; with --since one that has parents")
        ->type_name("FMT");
    app.add_option("-o,--options", target_lists_, "Options of that format; -o help lists them")
        ->type_name("NAME=VALUE")
        ->allow_extra_args(false);
    app.add_flag("-c,--compress", o.copy.compress, "Write compressed clusters");
    app.add_flag("--verify", o.verify,
                 "Read the backup back, with those before it, and compare it with the disk");
    app.add_flag("--force", o.force, "Replace an existing output file");
    app.add_option("--threads", o.copy.threads, "Workers; default: one for each processor");
    app.add_flag("-p,--progress", o.progress.show, "Show progress");
    app.add_flag("-q,--quiet", o.progress.quiet, "Print errors only");
    app.add_option("IMAGE", source_, "What is backed up")->required();
    app.add_option("FILE", o.target, "The new backup")->required();
  }

  int Run(Console& console) override {
    if (target_lists_.size() == 1 && (target_lists_[0] == "help" || target_lists_[0] == "?")) {
      return PrintFormatOptions(options_.target_format, console);
    }
    Result<ConvertOutcome> outcome = Backup(console);
    if (outcome) return 0;
    console.Report(outcome.error());
    return 1;
  }

 private:
  Result<ConvertOutcome> Backup(Console& console) {
    ConvertOptions& o = options_;
    if (full_ == !o.since.empty()) {
      return Fail(Code::kOutOfRange, "backup needs either --full or --since");
    }
    if (full_ && !o.parent.empty()) return Fail(Code::kOutOfRange, "-b goes with --since");
    if (!full_ && o.parent.empty()) {
      return Fail(Code::kOutOfRange, "--since needs the backup before: -b FILE");
    }
    if (source_ == "-" || o.target == "-") {
      return Fail(Code::kUnsupported, "backup works on files");
    }
    o.sources = {source_};
    o.source.quiet = o.progress.quiet;
    o.target_options = TRY(ParseOptionList(target_lists_));
    return RunConvert(o, console);
  }

  ConvertOptions options_;
  std::string source_;
  std::vector<std::string> target_lists_;
  bool full_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeBackupCommand() { return std::make_unique<BackupCommand>(); }

}  // namespace platter
