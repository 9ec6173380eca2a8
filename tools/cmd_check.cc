// platter check: consistency of an image's metadata, repair, and with --deep of
// every byte.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <optional>
#include <set>
#include <span>

#include "io/engine/engine.h"
#include "tools/command.h"
#include "tools/deep_check.h"
#include "tools/image_options.h"
#include "tools/interrupt.h"
#include "tools/progress.h"
#include "tools/repair_plan.h"

namespace platter {
namespace {

// qemu-img's exit codes.
enum ExitCode { kClean = 0, kFailed = 1, kCorrupt = 2, kLeaks = 3, kNoCheck = 63 };

class CheckCommand : public Command {
 public:
  std::string_view name() const override { return "check"; }
  std::string_view summary() const override { return "Check an image, and repair it if asked"; }
  std::string_view examples() const override {
    return "  platter check disk.qcow2\n"
           "  platter check --deep -p disk.qcow2        also read and "
           "decompress everything\n"
           "  platter check -r all disk.qcow2\n"
           "  platter check -r all --dry-run disk.qcow2        say what that would do\n"
           "  platter check -r all --undo before.undo disk.qcow2\n"
           "  platter check --apply-undo before.undo disk.qcow2        take the repair back\n"
           "Exit code: 0 consistent, 1 check failed, 2 corruptions, 3 leaks "
           "only, 63 the format has\n"
           "nothing to check.\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    image_.DeclareParent(app);
    app.add_option("-r,--repair", repair_, "Repair 'leaks', or 'all' that can be repaired")
        ->check(CLI::IsMember({"leaks", "all"}));
    app.add_flag("--dry-run", dry_run_, "With -r: repair nothing, say what would be written where");
    app.add_option("--undo", undo_, "With -r: first write to FILE what the repair is to change")
        ->type_name("FILE");
    app.add_option("--apply-undo", apply_undo_, "Take back the repair that wrote this file")
        ->type_name("FILE");
    app.add_flag(
        "--deep", deep_,
        "Also read and decompress every cluster, of snapshots too, and list what cannot be "
        "read");
    app.add_option("--output", output_, "human or json")->check(CLI::IsMember({"human", "json"}));
    app.add_flag("-p,--progress", progress_.show, "Show progress of --deep");
    app.add_flag("-q,--quiet", progress_.quiet, "Print errors only");
    app.add_option("--threads", threads_, "Workers of --deep; default: one for each processor");
    app.add_option("FILE", path_)->required();
  }

  int Run(Console& console) override {
    Result<int> code = Check(console);
    if (code) return *code;
    console.Report(code.error());
    return kFailed;
  }

 private:
  Result<int> Check(Console& console) {
    image_.quiet = progress_.quiet;
    if (repair_.empty() && (dry_run_ || !undo_.empty())) {
      return Fail(Code::kOutOfRange, "--dry-run and --undo go with -r");
    }
    if (!apply_undo_.empty() && (!repair_.empty() || deep_)) {
      return Fail(Code::kOutOfRange, "--apply-undo stands alone");
    }
    if (!apply_undo_.empty()) return TakeBack(console);
    CheckReport report;
    std::string format;
    {
      DiskOptions options = TRY(image_.ToDiskOptions(!repair_.empty() && !dry_run_));
      std::vector<std::string> warnings;
      const Gate gate = image_.MakeGate();
      auto image = TRY(OpenTopImage(path_, options, gate, &warnings));
      const Format* found = image.format;
      format = found->name;
      if (!found->check && !deep_) {
        console.Err(
            fmt::format("platter: '{}': {} images have no metadata to "
                        "check; --deep reads them\n",
                        Printable(path_, 4096), format));
        return kNoCheck;
      }
      if (found->check) {
        report = TRY_AS(fmt::format("{} '{}'", format, Printable(path_, 4096)),
                        CheckOrRepair(*found, image, options.file.writable));
      }
    }
    if (deep_) TRY(Deep(console, report));
    Print(console, report, format);
    return ExitFor(report);
  }

  CheckOptions::Repair Wanted() const {
    return repair_ == "all"     ? CheckOptions::kAll
           : repair_ == "leaks" ? CheckOptions::kLeaks
                                : CheckOptions::kNone;
  }

  Result<CheckReport> CheckOrRepair(const Format& format, TopImage& image, bool writable) {
    if (dry_run_ || !undo_.empty()) {
      plan_ = TRY(PlanRepair(format, *image.store, image.opener.get(), Wanted()));
      if (dry_run_) return plan_->report;
      if (plan_->empty()) return plan_->report;
      TRY(WriteUndo(undo_, *image.store, *plan_));
    }
    OpenOptions open;
    open.writable = writable;
    open.opener = image.opener.get();
    CheckReport report = TRY(format.check(*image.store, open, {.repair = Wanted()}));
    if (plan_) TRY(CompleteUndo(undo_, *image.store));
    return report;
  }

  Result<int> TakeBack(Console& console) {
    DiskOptions options = TRY(image_.ToDiskOptions(true));
    const Gate gate = image_.MakeGate();
    std::vector<std::string> warnings;
    auto image = TRY(OpenTopImage(path_, options, gate, &warnings));
    TRY(ApplyUndo(apply_undo_, *image.store));
    if (!progress_.quiet) console.Out("The repair was taken back.\n");
    return kClean;
  }

  Result<> Deep(Console& console, CheckReport& report) {
    auto disk = TRY(image_.Open(path_, false, console));
    Progress progress;
    CancelOnInterrupt cancel(progress);
    ProgressDisplay display(console, progress, progress_);
    TRY(DeepCheck(*disk, "", threads_, progress, report));
    for (const SnapshotInfo& snapshot : disk->info().snapshots) {
      ImageOptions options = image_;
      options.snapshot = snapshot.id;
      options.quiet = true;  // said above
      const std::string what = fmt::format("snapshot '{}': ", Printable(snapshot.name));
      auto view = options.Open(path_, false, console);
      if (view) {
        TRY(DeepCheck(**view, what, threads_, progress, report));
      } else {
        report.Add(CheckReport::Finding::kError, what + view.error().text());
      }
    }
    return {};
  }

  static int ExitFor(const CheckReport& report) {
    if (report.errors > 0) return kFailed;
    if (report.corruptions > 0) return kCorrupt;
    return report.leaks > 0 ? kLeaks : kClean;
  }

  void Print(Console& console, const CheckReport& report, const std::string& format) {
    if (output_ == "json") return console.Print("{}\n", ToJson(report, format).dump(4));
    if (progress_.quiet) return;
    for (const auto& finding : report.findings) {
      static constexpr const char* kNames[] = {"leak", "corruption", "error"};
      console.Print("{}: {}{}\n", kNames[finding.kind], finding.text,
                    !finding.fixed ? ""
                    : dry_run_     ? " (would be repaired)"
                                   : " (repaired)");
    }
    if (dry_run_) PrintPlan(console);
    const uint64_t left = report.errors + report.corruptions + report.leaks;
    if (report.corruptions_fixed + report.leaks_fixed > 0) {
      console.Print("{} {} leaks and {} corruptions.\n", dry_run_ ? "Would repair" : "Repaired",
                    report.leaks_fixed, report.corruptions_fixed);
    }
    if (left == 0) {
      console.Out("No errors were found on the image.\n");
    } else {
      console.Print("{} corruptions, {} leaked clusters, {} errors remain.\n", report.corruptions,
                    report.leaks, report.errors);
    }
    if (report.total_units > 0) {
      auto percent = [](uint64_t part, uint64_t whole) {
        return whole ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0.0;
      };
      console.Print(
          "{}/{} = {:.2f}% allocated, {:.2f}% fragmented, {:.2f}% "
          "compressed clusters\n",
          report.allocated_units, report.total_units,
          percent(report.allocated_units, report.total_units),
          percent(report.fragmented_units, report.allocated_units),
          percent(report.compressed_units, report.allocated_units));
      console.Print("Image end offset: {}\n", report.image_end);
    }
  }

  void PrintPlan(Console& console) {
    constexpr size_t kShown = 100;
    const std::vector<Range>& written = plan_->written;
    for (Range range : std::span(written).first(std::min(written.size(), kShown))) {
      console.Print("would write {} bytes at {:#x}\n", range.length, range.offset);
    }
    if (written.size() > kShown) {
      console.Print("and in {} more places; {} bytes in all\n", written.size() - kShown,
                    plan_->bytes());
    }
    if (plan_->size_before != plan_->size_after) {
      console.Print("would change the file's size from {} to {} bytes\n", plan_->size_before,
                    plan_->size_after);
    }
  }

  nlohmann::ordered_json ToJson(const CheckReport& report, const std::string& format) {
    nlohmann::ordered_json json = {
        {"image-end-offset", report.image_end},
        {"total-clusters", report.total_units},
        {"check-errors", report.errors},
        {"corruptions", report.corruptions},
        {"corruptions-fixed", report.corruptions_fixed},
        {"leaks", report.leaks},
        {"leaks-fixed", report.leaks_fixed},
        {"allocated-clusters", report.allocated_units},
        {"fragmented-clusters", report.fragmented_units},
        {"compressed-clusters", report.compressed_units},
        {"filename", Printable(path_, 4096)},
        {"format", format},
    };
    if (dry_run_ && plan_) {
      json["dry-run"] = true;
      json["file-size-before"] = plan_->size_before;
      json["file-size-after"] = plan_->size_after;
      json["writes"] = nlohmann::ordered_json::array();
      for (Range range : plan_->written) {
        json["writes"].push_back({{"offset", range.offset}, {"length", range.length}});
      }
    }
    json["findings"] = nlohmann::ordered_json::array();
    for (const auto& finding : report.findings) {
      static constexpr const char* kNames[] = {"leak", "corruption", "error"};
      json["findings"].push_back(
          {{"kind", kNames[finding.kind]}, {"text", finding.text}, {"fixed", finding.fixed}});
    }
    return json;
  }

  ImageOptions image_;
  std::string path_, repair_, undo_, apply_undo_, output_ = "human";
  bool deep_ = false, dry_run_ = false;
  std::optional<RepairPlan> plan_;
  unsigned threads_ = 0;
  ProgressOptions progress_;
};

}  // namespace

std::unique_ptr<Command> MakeCheckCommand() { return std::make_unique<CheckCommand>(); }

}  // namespace platter
