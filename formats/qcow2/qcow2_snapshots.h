// Internal snapshots: made, gone back to and dropped, in an image that is open for writing.
//
// A snapshot is an L1 table of its own, named by the snapshot table. Its L2 tables and clusters are
// the disk's at that moment, shared: each is counted once for every L1 table that reaches it, and
// has no "copied" bit in the disk's own entries, so that the next write goes elsewhere.
//
// Everything here excludes all other use of the layer. Each operation first flushes, then changes
// counts and flags, and has one moment at which it happens: the write of the header's first
// sector, which names another snapshot table, another L1 table, or both.
//
//   create  every reference of the disk's tree counts one more, its "copied" bits go;
//           the copy of L1 and the new snapshot table are written, Sync;
//           the header names the table.
//   apply   every reference of the snapshot's tree counts one more; the new L1 table is written,
//           Sync; the header names it; the old tree counts one less, "copied" bits come back.
//   delete  a snapshot table without it is written, Sync; the header names that; the snapshot's
//           tree counts one less, "copied" bits come back.
//
// A crash leaves the snapshots of before or of after. What it may leave besides are counts that are
// too high and "copied" bits that are missing or, before the header of `create`, that contradict a
// raised count: none of it lets a shared cluster be overwritten, because a raised count is written
// before the flags and the flags are gone before the header names the snapshot. In version 3 the
// dirty bit is set meanwhile, so that the next writer puts counts and flags right.
//
// Source: QEMU docs/interop/qcow2.rst, "Snapshots".
#pragma once

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "formats/qcow2/qcow2_layer.h"

namespace platter::qcow2 {

class Qcow2Snapshots final : public Snapshotter {
 public:
  explicit Qcow2Snapshots(Qcow2Layer& layer) : layer_(layer), format_(layer.format_) {}

  Result<> CreateSnapshot(const std::string& name) override;
  Result<> ApplySnapshot(const std::string& wanted) override;
  Result<> DeleteSnapshot(const std::string& wanted) override;

 private:
  Result<> Create(const std::string& name);
  Result<> Apply(const std::string& wanted);
  Result<> Delete(const std::string& wanted);

  Result<> Begin();
  Result<> End();
  Result<> SetDirty(bool dirty);
  // The first of these that says `wanted` decides. QEMU goes back to an id, else a name, and
  // deletes by name: so do we, and by id what has no such name.
  using Fields = std::array<std::string SnapshotInfo::*, 2>;
  Result<size_t> Find(const std::string& wanted, Fields fields) const;
  Result<Snapshot> Describe(const std::string& name) const;

  // Host bytes that the entries of an L2 table count on, neighbours joined.
  Result<std::vector<Range>> Named(uint64_t l1_index, uint64_t table);
  using Visit = std::function<Result<>(uint64_t l1_index, uint64_t table)>;
  Result<> ForEachTable(const EntryTable& l1, const Visit& visit);
  // One reference more, or less, to all that `l1` reaches. Not to the clusters of l1 itself.
  Result<> ShareTree(const EntryTable& l1);
  Result<> ReleaseTree(const EntryTable& l1);
  // Without "copied" bits in the disk's own tables.
  Result<> DisownTables();
  // With those that the counts allow.
  Result<> OwnTables();
  Result<> OwnEntries(uint64_t l1_index, uint64_t table);

  Result<EntryTable> LoadL1(const Snapshot& snapshot) const;
  // A copy of `l1`, "copied" bits cleared, with at least `entries` entries, at a place of its own;
  // written, not synced.
  Result<EntryTable> PlaceL1(const EntryTable& l1, uint64_t entries);
  // Places and writes a table of `snapshots`; names it in `header`.
  Result<> PlaceTable(const std::vector<Snapshot>& snapshots, Header& header);
  Result<> SwitchTo(const Header& header);
  void Adopt(std::vector<Snapshot> snapshots);
  Range TableRange() const;
  void Retire(Range table);

  Qcow2Layer& layer_;
  const Header& format_;
};

}  // namespace platter::qcow2
