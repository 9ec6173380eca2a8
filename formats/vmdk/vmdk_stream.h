// StreamWriter: a stream-optimized extent in the making. Grains go behind one another, each with
// its marker; tables, directory, footer and the end-of-stream marker follow on Finish.
//
//   header | descriptor | marker grain | marker grain | ... | marker table | ... | marker directory
//   | marker footer | end
//
// Everything starts on a sector; what is between is zeros. Finish may come more than once: what is
// appended after it goes over the tables that it wrote, so that the stream has no dead parts. A
// stream is therefore whole after Finish until the next Append; images are made under another name
// until they are finished.
//
// Grain tables are kept in memory until then: 4 bytes for each 64 KiB of guest data.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/sync.h"
#include "formats/vmdk/vmdk_parse.h"
#include "io/store.h"

namespace platter::vmdk {

// Any thread.
class StreamWriter {
 public:
  // Grains begin at geometry.overhead. `file` outlives this.
  StreamWriter(Store& file, const SparseGeometry& geometry);

  // Room for grains from number `first` on, with streams of `sizes` bytes: where the streams go.
  // Writes their markers. kNoSpace past 2 TiB.
  Result<std::vector<uint64_t>> Append(uint64_t first, std::span<const uint32_t> sizes);
  // The stream of grain `number`, for which Append gave `at`, is there.
  void Publish(uint64_t number, uint64_t at);
  // It will not come. A gap that is not at the end makes Finish fail.
  void Drop(uint64_t at, uint32_t size);
  // What an entry of a grain table would say; 0: nothing.
  uint64_t Entry(uint64_t number) const;

  // Writes what follows the grains; then Sync.
  Result<> Finish();

 private:
  Result<uint64_t> FinishLocked();

  Store& file_;
  const SparseGeometry geometry_;

  mutable Mutex mutex_;  // guards everything below; held while markers and tables are written
  std::map<uint64_t, std::vector<uint32_t>> tables_;  // by number; those that name something
  uint64_t next_;                                     // bytes: the end of the last grain
  bool finished_ = false;                             // nothing was appended since Finish
  bool broken_ = false;                               // there is a gap
};

}  // namespace platter::vmdk
