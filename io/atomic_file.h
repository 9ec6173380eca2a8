// AtomicFile: a new file that appears under its name only when it is whole.
//
// It is made as .NAME.platter-XXXXXX in the directory it will live in. Commit makes it durable and
// renames it; an AtomicFile that goes without Commit removes it. A process that is killed leaves at
// most the temporary name, never a half-written file under the final one; for signals that can be
// caught, see UnlinkTemporariesOnSignals.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "io/fd.h"
#include "io/store.h"

namespace platter {

class AtomicFile {
 public:
  struct Options {
    bool replace = false;  // an existing file (not a device or directory) may be replaced
    bool direct = false;   // O_DIRECT
  };

  // Makes the temporary file. kRefused if `path` exists and may not be replaced, or is in use by
  // another program (its image lock is held until the replacement). A symbolic link to an existing
  // file stays, and what it points to is replaced. The new file has the old one's mode and, where
  // that is allowed, its owner.
  static Result<AtomicFile> Create(const std::string& path, const Options& options);

  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  // The final name, as asked for; messages of the store use it.
  const std::string& path() const { return path_; }
  const std::string& temporary_path() const { return temporary_; }

  // The file's store, writable and empty. Once.
  std::unique_ptr<Store> TakeStore();

  // Removes the file that is to be replaced, if there is one, so that until Commit there is none
  // under the name. For files that mean something only together.
  Result<> DropOld();

  // Makes what was written durable, and then visible under the final name. Once; the store is
  // flushed and closed, or at least idle. On failure the temporary file is still removed at the
  // end.
  Result<> Commit();

 private:
  AtomicFile() = default;
  Result<> HoldOld();
  Result<> CreateTemporary(const Options& options);
  Result<> Rename();
  Result<> SyncDirectory() const;

  std::string path_, final_, temporary_;  // final_: path_ with links resolved, absolute
  bool replace_ = false;
  int slot_ = -1;  // in the table of what a signal removes
  Fd old_;         // the file to be replaced, locked
  Fd file_;
  std::unique_ptr<Store> store_;
};

// Removes the temporary files of this process. Safe in a signal handler.
void UnlinkTemporaries() noexcept;

// From now on SIGINT, SIGTERM and SIGHUP (unless ignored) remove the temporary files before they
// end the process. For programs; a library must not.
void UnlinkTemporariesOnSignals();

}  // namespace platter
