// Bitmapper: dirty bitmaps that an image keeps of its own disk. A bit says that the guest may have
// written to a run of bytes (a granule) since the bitmap was made or cleared; never is a written
// granule without its bit. What incremental backups are made of.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/range.h"
#include "base/result.h"

namespace platter {

// What is there is in Layer::info().bitmaps. A bitmap that is *enabled* follows the writes that
// come through the layer. One that is *in use* though nobody uses it is of a program that was
// interrupted while it wrote: what it says is not to be trusted, and everything but its removal is
// kRefused. kOutOfRange: there is no bitmap of this name.
//
// Changes are exclusive: nothing else uses the layer meanwhile. They are durable on return, and a
// crash leaves the bitmaps of before or of after the call. kReadOnly on a layer for reading.
class Bitmapper {
 public:
  virtual ~Bitmapper() = default;

  struct NewBitmap {
    std::string name;          // of none that is there (kRefused)
    uint64_t granularity = 0;  // bytes, a power of two; 0: the format's choice
    bool enabled = true;
  };
  virtual Result<> AddBitmap(const NewBitmap& bitmap) = 0;
  virtual Result<> RemoveBitmap(const std::string& name) = 0;
  // No granule is dirty.
  virtual Result<> ClearBitmap(const std::string& name) = 0;
  virtual Result<> EnableBitmap(const std::string& name, bool enabled) = 0;

  // What `from` says of a disk of the same size is dirty, too. `source` may be this.
  virtual Result<> MergeBitmap(const std::string& name, Bitmapper& source,
                               const std::string& from) = 0;

  // Calls `visit` with the dirty bytes inside `within`, ascending and apart from one another, until
  // it answers false. Any thread, beside guest operations too: what is written meanwhile may be
  // among it or not.
  using Visit = std::function<bool(Range)>;
  virtual Result<> VisitDirty(const std::string& name, Range within, const Visit& visit) = 0;
};

}  // namespace platter
