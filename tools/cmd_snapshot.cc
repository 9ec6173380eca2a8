// platter snapshot: the snapshots inside an image, and those that are files of their own.
#include <CLI/CLI.hpp>

#include "cow/overlay.h"
#include "tools/command.h"
#include "tools/image_options.h"
#include "tools/json_facts.h"
#include "tools/snapshot_diff.h"

namespace platter {
namespace {

class SnapshotCommand : public Command {
 public:
  std::string_view name() const override { return "snapshot"; }
  std::string_view summary() const override {
    return "List, create, apply, delete or compare the snapshots inside an image";
  }
  std::string_view examples() const override {
    return "  platter snapshot -c before-upgrade disk.qcow2\n"
           "  platter snapshot -l disk.qcow2\n"
           "  platter snapshot -a before-upgrade disk.qcow2\n"
           "  platter convert -l before-upgrade -O raw disk.qcow2 before.raw\n"
           "  platter snapshot diff monday tuesday disk.qcow2        what changed, from its "
           "tables\n"
           "  platter snapshot diff --picture changes.html monday disk.qcow2        since monday\n"
           "  platter snapshot --external before-upgrade disk.qcow2\n"
           "With --external, NAME is a path if it has a slash; else disk.NAME.qcow2 beside the "
           "image\n"
           "has its content, and the image becomes an overlay of that. An image that another "
           "program\n"
           "has open is refused.\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    auto* what = app.add_option_group("what");
    what->add_flag("-l,--list", list_, "List them (what happens without an option, too)");
    what->add_option("-c,--create", create_, "Create one that holds what the disk holds now")
        ->type_name("NAME");
    what->add_option("-a,--apply", apply_, "The disk goes back to SNAP, an id or else a name")
        ->type_name("SNAP");
    what->add_option("-d,--delete", delete_, "Delete SNAP, a name or else an id")
        ->type_name("SNAP");
    what->add_option("--external", external_,
                     "What the disk holds now becomes a file of its own, the image's parent")
        ->type_name("NAME");
    what->require_option(0, 1);
    app.add_option("--picture", diff_.picture, "diff: draw the changes into FILE.png or FILE.html")
        ->type_name("FILE");
    app.add_option("--overlay-format", overlay_.overlay_format,
                   "With --external: format of the image from now on; default: as it is")
        ->type_name("FMT");
    app.add_option("-o,--options", overlay_lists_, "With --external: options of that format")
        ->type_name("NAME=VALUE")
        ->allow_extra_args(false);
    app.add_option("--output", output_, "human or json: of the list, of diff")
        ->check(CLI::IsMember({"human", "json"}))
        ->type_name("FORMAT");
    app.add_flag("-q,--quiet", image_.quiet, "Print errors only");
    app.add_option("FILE", words_, "The image; or: diff SNAP [SNAP] IMAGE")
        ->required()
        ->expected(1, 4);
  }

  int Run(Console& console) override {
    path_ = words_.back();
    if (words_.size() > 1) return Report(Diff(console), console);
    const bool change = !create_.empty() || !apply_.empty() || !delete_.empty();
    return Report(!external_.empty() ? TakeExternal(console)
                  : change           ? Change(console)
                                     : List(console),
                  console);
  }

 private:
  static int Report(Result<> done, Console& console) {
    if (done) return 0;
    console.Report(done.error());
    return 1;
  }

  Result<> Diff(Console& console) {
    if (words_[0] != "diff" || words_.size() < 3 || list_ ||
        !(create_ + apply_ + delete_).empty()) {
      return Fail(Code::kOutOfRange, "snapshot takes one FILE, or: diff SNAP [SNAP] FILE");
    }
    diff_.image = image_;
    diff_.path = path_;
    diff_.from = words_[1];
    if (words_.size() == 4) diff_.to = words_[2];
    diff_.output = output_;
    return ShowSnapshotDiff(diff_, console);
  }

  Result<> List(Console& console) {
    image_.info_only = true;
    auto disk = TRY(image_.Open(path_, false, console));
    const std::vector<SnapshotInfo>& snapshots = disk->info().snapshots;
    if (output_ == "json") {
      console.Out(SnapshotsToJson(snapshots).dump(4) + "\n");
    } else if (!snapshots.empty()) {
      console.Out(SnapshotsToText(snapshots));
    }
    return {};
  }

  Result<> Change(Console& console) {
    image_.no_backing = true;  // what the parents hold is no part of a snapshot
    auto disk = TRY(image_.Open(path_, true, console));
    Snapshotter* snapshots = disk->snapshotter();
    if (!snapshots) {
      return Fail(Code::kUnsupported, "'{}': {} images hold no snapshots", Printable(path_, 4096),
                  disk->info().format);
    }
    if (!create_.empty()) return snapshots->CreateSnapshot(create_);
    if (!apply_.empty()) return snapshots->ApplySnapshot(apply_);
    return snapshots->DeleteSnapshot(delete_);
  }

  Result<> TakeExternal(Console& console) {
    overlay_.open = TRY(image_.ToDiskOptions(false));
    overlay_.overlay_options = TRY(ParseOptionList(overlay_lists_));
    const bool is_path = external_.find('/') != external_.npos;
    const std::string base = is_path ? external_ : SnapshotPath(path_, external_);
    std::vector<std::string> warnings;
    Result<> taken = TakeExternalSnapshot(path_, base, overlay_, image_.MakeGate(), &warnings);
    if (image_.quiet) return taken;
    for (const std::string& warning : warnings) console.Warn(warning);
    if (taken)
      console.Print("'{}' is now an overlay of '{}'.\n", Printable(path_, 4096),
                    Printable(base, 4096));
    return taken;
  }

  ImageOptions image_;
  SnapshotDiff diff_;
  std::vector<std::string> words_;
  ExternalSnapshotOptions overlay_;
  std::vector<std::string> overlay_lists_;
  std::string external_;
  std::string path_, create_, apply_, delete_, output_ = "human";
  bool list_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeSnapshotCommand() { return std::make_unique<SnapshotCommand>(); }

}  // namespace platter
