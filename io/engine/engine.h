// The engine: the only code that moves guest bytes. Free functions over Layer&: they know layers,
// stores and codecs, never formats. All of them: any thread, any number at once on one layer.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "io/layer.h"

namespace platter {

// Reads guest bytes [at, at + length of `into`). On error parts of `into` may have been written.
Result<> Read(Layer& layer, uint64_t at, std::span<const iovec> into);
Result<> Read(Layer& layer, uint64_t at, Bytes into);

// A prefix that needs no waiting (cached tables, cached pages, no decompression); 0 is always a
// right answer. Front ends call this first, inline.
size_t TryRead(Layer& layer, uint64_t at, std::span<const iovec> into);

// Writes guest bytes. Visible to every Read that starts after it returns; durable after Flush. On
// error each byte of the range holds its old or its new value, and bytes outside are untouched.
Result<> Write(Layer& layer, uint64_t at, std::span<const iovec> from);
Result<> Write(Layer& layer, uint64_t at, ConstBytes from);

// The range reads as zeros afterwards: by Discard(kZero) (kHole when `may_unmap` and nothing below
// could show through) where the layer can, by writing zeros for the ragged rest.
Result<> Zero(Layer& layer, Range range, bool may_unmap);

// As Zero for what the layer can drop whole units of; ragged ends stay as they are (TRIM).
Result<> Discard(Layer& layer, Range range);

// Progress and cancellation of long work; both are called from several threads.
struct Progress {
  std::atomic<uint64_t> done{0};    // guest bytes dealt with, holes included
  std::atomic<uint64_t> total{0};   // guest bytes in all
  std::atomic<uint64_t> moved{0};   // bytes of data really read
  std::atomic<bool> cancel{false};  // set it: the work stops soon with kRefused "cancelled"
};

struct CopyOptions {
  unsigned threads = 0;    // 0: one for each processor
  uint64_t sparse = 4096;  // bytes: runs of zeros at least this long become holes, as far as
                           // the target's unit can express them; 0: all of `range` becomes data,
                           // the source's holes as well
  bool target_is_zero = false;  // the target reads as zeros already: zeros need no write
  bool skip_parent = false;     // copy only what the top layer of `from` itself holds, and leave
                                // alone what comes from below it (convert -B)
  bool compress = false;        // write packed units (ReservePacked) in info().compression; also
                                // where the target takes nothing else (info().only_packed)
  bool keep_packed = false;     // packed units of the source stay so even without `compress`, where
                                // the target takes their codec and size
  int level = 0;                // codec's level; 0: our default
  uint64_t bytes_per_second = 0;  // 0: no limit
  bool salvage = false;           // unreadable ranges become zeros and are told to `unreadable`
  std::function<void(Range, const Error&)> unreadable;  // called under a lock, ascending per thread
  Progress* progress = nullptr;
};

// Makes `range` of `to` read as `range` of `from` does; past the end of `from`, zeros. For each
// extent the cheapest way that both sides allow: nothing (holes), copy_file_range (reflinks where
// the filesystem has them), still-compressed units (checked by decompressing them, so that a
// corrupt one is an error here and not in the copy), or buffers. Uses `threads` workers,
// or as many as do with some 200 MiB together. Space in the target is reserved in guest order
// whatever the number of threads, so the same input gives the same bytes of output.
Result<> Copy(Layer& from, Layer& to, Range range, const CopyOptions& options);

// Compares guest content; past the end of the shorter one, zeros. The first differing byte's
// offset, or nothing; an error where what lies before it, or all, cannot be read. All cores.
Result<std::optional<uint64_t>> Compare(Layer& a, Layer& b, const CopyOptions& options);

}  // namespace platter
