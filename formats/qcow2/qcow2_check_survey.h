// The survey: everything in an image that names host clusters, found once and kept, so that the
// comparison can say who owns a cluster and the repair knows what to mend.
//
// It comes in two steps. SurveyMetadata reads what the header leads to: L1 tables (active and of
// snapshots), refcount table, snapshot table, bitmaps. CountTables (qcow2_check_tables.h) then
// reads the L2 tables, which is nearly all of the work.
//
// What is damaged is reported and, where what it names is still plain, counted all the same: an
// entry with a stray bit must not make the cluster that it names look unused. What cannot be
// followed makes the survey incomplete, and then nothing that looks unused may be taken for unused.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/qcow2/qcow2_check_image.h"
#include "formats/qcow2/qcow2_findings.h"
#include "formats/qcow2/qcow2_refmap.h"

namespace platter::qcow2::check {

// A structure other than L2 tables and refcount blocks, which the header leads to.
struct Region {
  enum Part : uint8_t {
    kHeader,
    kLuksHeader,
    kActiveL1,
    kSnapshotTable,
    kSnapshotL1,
    kRefcountTable,
    kBitmapDirectory,
    kBitmapTable,
  } part;
  uint32_t index;  // of the snapshot or bitmap
  Range range;     // bytes, ends before 2^63
};

// One L2 table, however many L1 entries name it.
struct TableRef {
  uint64_t offset;
  uint32_t l1_index;  // of the first L1 entry that names it, the active ones before others
  uint32_t owner;     // whose entry that is: 0 the active L1 table, i + 1 snapshot i
  uint32_t total;     // L1 entries that name it; saturates
  uint32_t active;    // of these, entries of the active L1 table
};

struct Statistics {
  uint64_t allocated = 0, compressed = 0, fragmented = 0;  // guest clusters
};

// Survey::blocks holds offsets of refcount blocks, 0 where there is none (the refcounts are zero),
// or these. Offsets are multiples of 512.
constexpr uint64_t kBadBlock = 2;       // the entry is damaged: the refcounts are unknown
constexpr uint64_t kRepeatedBlock = 1;  // added to the offset: an earlier entry names it too
constexpr bool IsBlock(uint64_t value) { return value != 0 && value % 512 == 0; }

struct Survey {
  std::vector<Region> regions;
  std::vector<std::string> snapshots, bitmaps;  // printable names by index
  std::vector<uint64_t> blocks;                 // refcount blocks by index in the refcount table
  std::vector<TableRef> tables;                 // L2 tables by ascending offset
  RefMap refs;
  Findings findings;
  Statistics statistics;
  bool incomplete = false;  // something was not followed: what is unreferenced may be in use
  bool rebuild = false;     // the refcount structures cannot be written where they are

  std::string Name(const Region& region) const;
  std::string Name(const TableRef& table) const;
};

// Adds to `survey` everything but the L2 tables' content.
void SurveyMetadata(const Image& image, Survey& survey);

// Adds to `owners` what refers to `suspects` (ascending, and marked so in the map), the content of
// L2 tables apart.
void FindMetadataOwners(const Image& image, const Survey& survey,
                        std::span<const uint64_t> suspects, Owners& owners);

// A nonzero entry of an L1 or bitmap table.
struct TableEntry {
  uint64_t at;           // its own place in the file
  uint64_t value;        // as on disk
  uint64_t index;        // in its table
  const Region& region;  // its table; the first, where several lie over it
  uint32_t weight;       // how many do

  uint32_t owner() const { return region.part == Region::kActiveL1 ? 0 : region.index + 1; }
};
// Calls `visit` for each nonzero entry of the tables that are `part`, once for each entry on disk.
Result<> VisitEntries(const Image& image, const Survey& survey, Region::Part part,
                      const std::function<void(const TableEntry&)>& visit);

}  // namespace platter::qcow2::check
