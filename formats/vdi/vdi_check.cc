#include "formats/vdi/vdi_check.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "formats/vdi/vdi_survey.h"

namespace platter::vdi {
namespace {

// What `after` still has is left; what only `before` has was repaired.
CheckReport Compare(CheckReport before, CheckReport after) {
  std::unordered_set<std::string_view> left;
  for (const auto& finding : after.findings) left.insert(finding.text);
  std::vector<CheckReport::Finding> all;
  for (auto& finding : before.findings) {
    if (left.contains(finding.text)) continue;
    finding.fixed = true;
    all.push_back(std::move(finding));
  }
  std::ranges::move(after.findings, std::back_inserter(all));
  after.findings = std::move(all);
  after.leaks_fixed = before.leaks - std::min(before.leaks, after.leaks);
  after.corruptions_fixed = before.corruptions - std::min(before.corruptions, after.corruptions);
  return after;
}

}  // namespace

Result<CheckReport> CheckVdi(Store& store, const OpenOptions& open, const CheckOptions& options) {
  (void)open;
  Survey survey = TRY(SurveyImage(store));
  if (options.repair == CheckOptions::kNone || survey.report.errors > 0) {
    return std::move(survey.report);
  }
  if (!store.writable()) return Fail(Code::kReadOnly, "repair: opened for reading only");
  if (survey.report.findings.empty()) return std::move(survey.report);
  TRY_AS("repair", RepairImage(store, survey, options.repair));
  Survey after = TRY(SurveyImage(store));
  return Compare(std::move(survey.report), std::move(after.report));
}

}  // namespace platter::vdi
