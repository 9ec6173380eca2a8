// Gate: which files an image may make us open.
//
// An image is data from a stranger; the names in it are wishes. By default it
// may name only files in its own directory or below it, or below a trusted
// directory (--trust DIR, PLATTER_TRUST=DIR:DIR in the environment);
// --allow-external lifts that. Symbolic links are resolved before the
// comparison. The refusal names the reference and the flag that would allow it.
// `info` lists every reference without opening it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "formats/format.h"
#include "io/codec/cipher.h"
#include "io/store.h"

namespace platter {

struct GatePolicy {
  bool allow_external = false;
  std::vector<std::string> trusted; // directories; below them is allowed too
  unsigned max_depth = 200;         // layers of a chain
  // PLATTER_TRUST of the environment added to `trusted`.
  static GatePolicy FromEnvironment();
};

// How a file named on the command line, or by an image, becomes a Store.
struct FileOptions {
  bool writable = false;
  bool direct = false; // O_DIRECT
  bool force_share =
      false; // read-only: do not mind another program's write lock
  bool lock = true;
};

class Gate {
public:
  explicit Gate(GatePolicy policy) : policy_(std::move(policy)) {}

  // A file that the user named: no policy applies. Chooses file or block device
  // store by what the path is. kIo, kRefused (locked by another program;
  // directory, FIFO, socket).
  static Result<std::unique_ptr<Store>> OpenFile(const std::string &path,
                                                 const FileOptions &options);

  // The absolute, symlink-free path of `reference` as named by the image at
  // `image_path`, if the policy lets it be opened. Relative names are relative
  // to the image's directory; "file:" is taken off; "json:", other protocols,
  // empty names, names with NUL bytes, devices under a name that the image
  // chose (without allow_external), and directories are refused.
  Result<std::string> Resolve(const std::string &image_path,
                              const Reference &reference) const;

  const GatePolicy &policy() const { return policy_; }

private:
  GatePolicy policy_;
};

} // namespace platter
