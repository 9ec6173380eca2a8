// The L2 tables: what their entries refer to. Reading them is what a check spends its time on, so
// they are read in the order in which they lie in the file, each once however often it is named,
// by several threads.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "formats/qcow2/qcow2_check_survey.h"

namespace platter::qcow2::check {

// The host clusters that an L2 entry refers to, if it does.
struct Touch {
  uint64_t first, last;
  // A standard cluster that is in order: its "copied" flag has to agree with the refcount.
  bool flagged, copied;
};
// What is wrong with the entry goes to `findings`, which may be null. `guest` is the guest offset.
// With an external data file nothing is touched.
std::optional<Touch> TouchOf(const Image& image, L2Entry entry, uint64_t guest,
                             const std::function<std::string()>& where, Findings* findings);

// Entry `index` of an L2 table.
L2Entry LoadL2(const Header& header, ConstBytes table, uint64_t index);

inline uint64_t GuestOffset(const Header& header, const TableRef& table, uint64_t index) {
  return (table.l1_index * header.l2_entries() + index) << header.cluster_bits;
}

// Reads all L2 tables of the survey and counts what they refer to.
void CountTables(const Image& image, Survey& survey);

// Reads them once more, now that the refcounts are known: reports the "copied" flags of active
// entries that are wrong, and adds to `owners` what refers to the suspects.
void ExamineTables(const Image& image, Survey& survey, Owners& owners);

}  // namespace platter::qcow2::check
