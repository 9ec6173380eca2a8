// Allocator: which host clusters are free, and when freed ones become so.
//
// A cluster's way: free (refcount 0) -> allocated (refcount 1, known to a Reservation only) ->
// published (named by an L2 or L1 entry in memory) -> retired (no entry in memory names it, but
// one on disk may, and a reader may still look at it) -> free again. Settle does the last step,
// for clusters whose unlinking is durable and which no Pin can see any more.
//
// Policy. New space comes from runs of free clusters known to be good enough for the request, else
// from the end of the file. What was free when the image was opened is found by looking at one
// slice of refcounts with each request, so that opening costs nothing. The list of free runs is
// bounded: what does not fit is found again by looking.
//
// The file is made longer before anybody gets a cluster, so it always covers what is allocated,
// and in steps that are cut off again at the end (Trim).
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <vector>

#include "base/sync.h"
#include "formats/qcow2/qcow2_metadata.h"
#include "formats/qcow2/qcow2_refcount.h"
#include "io/pin.h"

namespace platter::qcow2 {

// Any thread, any number at once.
class Allocator {
 public:
  Allocator(Store& file, const Header& header, PinSet& pins, MetadataMap& metadata);

  // Reads the refcount table and tells `metadata` where its blocks are. Once, first.
  Result<> Open();

  // Whether clusters past the end of the file are counted. It may have been cut; or whoever counted
  // them never came to write there. Before anything is allocated.
  Result<bool> CountsPastEnd();

  // Before the first write: a last cluster that the file holds in part only is made whole.
  Result<> CoverLastCluster();
  // The file reaches to the end of `host`, an allocated cluster that was never written.
  Result<> Cover(Range host);

  // A run of at least one and at most `most` clusters, each with refcount 1.
  Result<Clusters> Allocate(uint64_t most);
  // `count` clusters in one run, at the end of the file.
  Result<Clusters> AllocateTogether(uint64_t count);
  // Host offsets of packed units of `sizes` bytes each, laid out one after the other and sharing
  // clusters where refcounts allow it: of the first one at least, maybe not of all.
  Result<std::vector<uint64_t>> AllocatePacked(std::span<const uint32_t> sizes);

  // What was allocated and never published. What cannot be given back (its refcounts cannot be
  // read) is a leak.
  void GiveBack(Clusters run);
  void GiveBackPacked(uint64_t offset, uint64_t length);

  // One reference to each cluster that `host` (bytes) touches is gone since flush `generation` of
  // the layer was begun, so the next one makes it durable. `punch`: give the space back to the file
  // system, too.
  void Retire(Range host, uint64_t generation, bool punch);
  // Flush number `durable` is on disk: frees what that makes free. On error the rest stays retired.
  Result<> Settle(uint64_t durable);
  // True if a Flush could free something.
  bool HasRetired() const;

  Result<uint64_t> Refcount(uint64_t offset);
  // One reference more to each cluster that `host` (bytes) touches. kNoSpace where the refcounts
  // are too narrow for it, kCorrupt where nobody counts the cluster; a part may have been counted.
  Result<> Share(Range host);

  // What a Flush writes. After the table has moved and the header names its new place, TableMoved
  // retires the old one.
  Refcounts::Batch Take();
  void PutBack(const Refcounts::Batch& batch);
  void Written(const Refcounts::Batch& batch, bool table_moved);
  bool dirty() const;
  // True when there is so much to be written or freed that somebody should flush.
  bool crowded() const;

  // Bytes of the file that may be read: it is at least that long.
  uint64_t file_size() const { return file_size_.load(std::memory_order_acquire); }
  // Cuts off what the file was made too long by. Nobody else uses the image.
  Result<> Trim();

 private:
  struct Retired {
    Clusters run;
    uint64_t epoch;       // of pins_ when nothing named it any more
    uint64_t generation;  // of the layer's flushes
    bool punch;
  };

  uint64_t Offset(uint64_t cluster) const { return cluster << cluster_bits_; }
  Result<uint64_t> LastUsedLocked();
  Result<uint64_t> LastUsedInLocked(Clusters run);
  Result<> ScanLocked();
  Result<Clusters> AllocateLocked(uint64_t most);
  Result<Clusters> TakeFreeLocked(uint64_t most, uint64_t least);
  Result<Clusters> AppendLocked(uint64_t most);
  Result<Clusters> AppendTogetherLocked(uint64_t count);
  uint64_t BlocksMissing(uint64_t first, uint64_t count) const;
  Result<> PrepareLocked(Clusters run, uint64_t blocks);
  Result<> PlaceLocked(Clusters run, uint64_t blocks);
  Result<uint64_t> LargerTableLocked(uint64_t more) const;
  Result<> GrowTableLocked(uint64_t more);
  Result<> GrowFileLocked(uint64_t clusters);
  Result<> DropLocked(Clusters run, bool punch);
  Result<> DropOneLocked(uint64_t cluster, Clusters& freed);
  void AddFreeLocked(Clusters run);
  Result<uint64_t> PackOneLocked(uint32_t size);

  Store& file_;
  const uint32_t cluster_bits_;
  const uint64_t cluster_size_, packed_limit_;
  const bool fixed_size_;
  PinSet& pins_;
  MetadataMap& metadata_;

  // Guards everything below. Stays held while refcounts are read and freed space is punched; no
  // other lock is taken under it but those of the table cache and the metadata map.
  mutable Mutex mutex_;
  Refcounts refcounts_;
  uint64_t end_ = 0;                   // clusters: from here on all are free
  uint64_t untouched_ = 0;             // clusters: from here on the file has never held anything
  uint64_t scan_ = 0;                  // clusters: from here to end_ free ones may be unknown
  std::map<uint64_t, uint64_t> free_;  // free runs: first cluster, count
  std::deque<Retired> retired_;
  std::vector<Clusters> old_tables_;  // refcount tables that the header may still name
  uint64_t packed_at_ = 0;            // bytes: where the next packed unit may continue; 0: nowhere
  uint64_t opened_size_ = 0;          // bytes: of the file, when we began
  std::atomic<uint64_t> file_size_{0};
};

}  // namespace platter::qcow2
