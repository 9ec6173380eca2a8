// NewImage: an image in the making. It is built under a temporary name and appears under its own,
// whole, on Commit; a failed or killed program leaves nothing that looks like an image.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cow/disk.h"
#include "cow/gate.h"
#include "formats/format.h"

namespace platter {

struct NewImageOptions {
  std::string format = "raw";
  CreateOptions create;           // create.parent as it is to be recorded
  bool size_from_parent = false;  // take create.size from the parent
  bool open_parent = true;        // open the parent: it must exist and fit
  std::string recorded_name;      // what the image calls itself; empty: as its file is called
  bool direct = false;            // O_DIRECT
  bool replace = false;           // what stands at `path` gives way on Commit; else it is kRefused
};

class NewImage {
 public:
  // Creates and opens for writing. The parent's format is found out (a warning says so) where
  // create.parent names none. The parent may be anywhere, since the user names it; a warning says
  // so where opening the new image is going to need --trust. Files that the format wants
  // beside the image's own (extents, a data file) are made along with it. `path` may be a block
  // device: then it is written in place, and only with `replace`. Warnings for the user are
  // appended to `warnings`, which may be null.
  static Result<std::unique_ptr<NewImage>> Create(const std::string& path,
                                                  const NewImageOptions& options, const Gate& gate,
                                                  std::vector<std::string>* warnings);
  ~NewImage();  // without Commit: the temporary files are gone

  // The new image with its parents, for writing.
  Disk& disk();

  // True if the new image reads as zeros wherever no layer below it says otherwise: false for raw
  // bytes on a block device, which holds what it held.
  bool starts_zero() const;

  // Flush, sync, rename to the final name, sync the directory. Once, last; disk() is gone after.
  Result<> Commit();

 private:
  struct State;
  explicit NewImage(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace platter
