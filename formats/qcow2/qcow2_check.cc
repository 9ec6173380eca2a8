#include "formats/qcow2/qcow2_check.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <unordered_set>
#include <utility>

#include "formats/qcow2/qcow2_check_compare.h"
#include "formats/qcow2/qcow2_check_survey.h"
#include "formats/qcow2/qcow2_check_tables.h"
#include "formats/qcow2/qcow2_repair.h"

namespace platter::qcow2 {
namespace {

using check::Findings;
using check::Image;
using check::Remedy;
using check::Repaired;
using check::Survey;

constexpr auto kLeak = CheckReport::Finding::kLeak;
constexpr auto kCorruption = CheckReport::Finding::kCorruption;
constexpr auto kError = CheckReport::Finding::kError;

// The results of one pass over the image. The survey's maps are large: a pass is dropped before
// the next begins.
struct Pass {
  explicit Pass(Image opened) : image(std::move(opened)) {
    check::SurveyMetadata(image, survey);
    check::CountTables(image, survey);
    image_end = check::CompareRefcounts(image, survey);
  }
  Image image;
  Survey survey;
  uint64_t image_end = 0;
};

// What is left of a pass when it has been repaired.
struct Before {
  Findings findings;
  Repaired repaired;
};

void AddNotes(CheckReport& report, const std::vector<Findings::Note>& notes, bool fixed) {
  for (const Findings::Note& note : notes) {
    if (report.findings.size() >= Findings::kKept) return;
    report.findings.push_back({note.kind, note.text, fixed});
  }
}

// How many findings that `repaired` was to mend are gone.
uint64_t CountFixed(const Before& before, const Findings& after, CheckReport::Finding::Kind kind) {
  uint64_t fixed = 0;
  for (Remedy remedy : {Remedy::kRaise, Remedy::kLower, Remedy::kFlag, Remedy::kRebuild}) {
    if (!before.repaired.Applied(remedy)) continue;
    uint64_t was = before.findings.count(kind, remedy), is = after.count(kind, remedy);
    fixed += was - std::min(was, is);
  }
  return fixed;
}

CheckReport MakeReport(const Pass& pass, const std::optional<Before>& before) {
  const Findings& left = pass.survey.findings;
  CheckReport report;
  if (before) {
    std::unordered_set<std::string_view> still;
    for (const auto* notes : {&left.serious(), &left.leaks()}) {
      for (const Findings::Note& note : *notes) still.insert(note.text);
    }
    auto is_mended = [&](const Findings::Note& note) {
      return before->repaired.Applied(note.remedy) && !still.contains(note.text);
    };
    for (const auto* notes : {&before->findings.serious(), &before->findings.leaks()}) {
      std::vector<Findings::Note> done;
      std::copy_if(notes->begin(), notes->end(), std::back_inserter(done), is_mended);
      AddNotes(report, done, true);
    }
    report.leaks_fixed = CountFixed(*before, left, kLeak);
    report.corruptions_fixed = CountFixed(*before, left, kCorruption);
  }
  AddNotes(report, left.serious(), false);
  AddNotes(report, left.leaks(), false);
  report.leaks = left.count(kLeak);
  report.corruptions = left.count(kCorruption);
  report.errors = left.count(kError);
  report.image_end = pass.image_end;
  report.total_units = DivideUp(pass.image.header.size, pass.image.cluster_size());
  report.allocated_units = pass.survey.statistics.allocated;
  report.compressed_units = pass.survey.statistics.compressed;
  report.fragmented_units = pass.survey.statistics.fragmented;
  return report;
}

// The bits that say "check me", where the pass says that there is nothing left to fear.
Result<> ClearWarnings(const Pass& pass, CheckOptions::Repair mode) {
  const Findings& left = pass.survey.findings;
  bool sound = left.count(kCorruption) + left.count(kError) == 0;
  bool counts_right = left.count(kCorruption, Remedy::kRaise) +
                              left.count(kCorruption, Remedy::kRebuild) + left.count(kError) ==
                          0 &&
                      !pass.survey.incomplete;
  uint64_t bits = 0;
  if (sound) bits |= kCorrupt;
  if (sound || (mode == CheckOptions::kAll && counts_right)) bits |= kDirty;
  return check::ClearIncompatible(pass.image, bits);
}

}  // namespace

Result<CheckReport> CheckQcow2(Store& store, const OpenOptions& open, const CheckOptions& options) {
  (void)open;
  std::optional<Pass> pass(std::in_place, TRY(check::LoadImage(store)));
  if (options.repair == CheckOptions::kNone) return MakeReport(*pass, std::nullopt);
  if (!store.writable()) return Fail(Code::kReadOnly, "repair: opened for reading only");
  // Once the refcount structures are sound, flags can be mended that could not be before: in tables
  // of which they claimed the clusters. So a rebuilt image gets a second round.
  std::optional<Before> before;
  for (bool again = true; again;) {
    Repaired repaired =
        TRY_AS("repair", check::Repair(pass->image, pass->survey, options.repair, pass->image_end));
    if (!repaired.Any()) break;
    again = repaired.rebuilt && !before;
    if (!before) before = Before{std::move(pass->survey.findings), {}};
    before->repaired.Merge(repaired);
    pass.reset();
    pass.emplace(TRY(check::LoadImage(store)));
  }
  TRY_AS("repair: header", ClearWarnings(*pass, options.repair));
  return MakeReport(*pass, before);
}

Result<> RepairDirty(Store& store) {
  if (!(TRY(check::LoadImage(store)).header.incompatible & kDirty)) return {};
  CheckOptions options;
  options.repair = CheckOptions::kAll;
  CheckReport report = TRY_AS("not closed cleanly", CheckQcow2(store, {}, options));
  if (!(TRY(check::LoadImage(store)).header.incompatible & kDirty)) return {};
  for (const CheckReport::Finding& finding : report.findings) {
    if (!finding.fixed) {
      return Fail(Code::kCorrupt, "not closed cleanly, and cannot be repaired: {}", finding.text);
    }
  }
  return Fail(Code::kCorrupt, "not closed cleanly, and cannot be repaired");
}

}  // namespace platter::qcow2
