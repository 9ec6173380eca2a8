// Gate: which files an image may make us open.
//
// An image is data from a stranger; the names in it are wishes. By default it may name only files
// in its own directory or below it, or below a trusted directory (--trust DIR,
// PLATTER_TRUST=DIR:DIR in the environment); --allow-external lifts that. Symbolic links are
// resolved before the comparison. The refusal names the reference and the flag that would allow it.
// `info` lists every reference without opening it.
//
// Whoever controls a folder can put a link in the place of what was looked up. So what Resolve
// returned is opened without following any link, and has to be the file that was told apart from
// the others of the chain (PathRules).
//
// The rule is applied anew for each image of a chain, to the directory in which that image really
// is: a parent in a trusted directory may name what lies beside it, nothing else.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "formats/format.h"
#include "io/open_path.h"
#include "io/store.h"

namespace platter {

struct GatePolicy {
  bool allow_external = false;
  std::vector<std::string> trusted;  // directories; what lies below them is allowed too
  // Directories, trusted as well, in which a parent that is known by its id is looked for.
  std::vector<std::string> search;
  unsigned max_depth = 200;  // layers of a chain, at most 255
  // PLATTER_TRUST of the environment as `trusted`.
  static GatePolicy FromEnvironment();
};

// How a file named on the command line, or by an image, becomes a Store.
struct FileOptions {
  bool writable = false;
  bool direct = false;       // O_DIRECT
  bool force_share = false;  // read-only: do not mind another program's write lock
  bool lock = true;
  PathRules path;  // what the gate found out about it
};

// The file at `path` as it is now.
Result<FileId> IdentifyFile(const std::string& path);

class Gate {
 public:
  explicit Gate(GatePolicy policy) : policy_(std::move(policy)) {}

  // A file that the user named: no policy applies. Chooses file or block device store by what the
  // path is. kIo, kRefused (locked by another program; directory, FIFO, socket).
  static Result<std::unique_ptr<Store>> OpenFile(const std::string& path,
                                                 const FileOptions& options);

  // The absolute, symlink-free path of `name`, by which the image at `image_path` means
  // `reference`, if the policy lets it be opened. Relative names are relative to the image's
  // directory, as the image was named; "file:" is taken off; "json:", other protocols, empty names,
  // names with NUL bytes, directories, FIFOs and character devices are refused, block devices
  // without allow_external. Errors begin with the reference; the caller says whose it is.
  Result<std::string> Resolve(const std::string& image_path, const Reference& reference,
                              const std::string& name) const;
  // As above, of the first of reference.paths that resolves, or of its name where it has none. If
  // none does, the error is that of the first.
  Result<std::string> Resolve(const std::string& image_path, const Reference& reference) const;

  const GatePolicy& policy() const { return policy_; }

 private:
  bool Allows(const std::string& image_path, const std::string& real_path) const;

  GatePolicy policy_;
};

// "parent 'base.qcow2'", for messages; "parent {id}" where the image knows no name.
std::string Describe(const Reference& reference);

// What a format is handed to open its data files with: each goes through the gate, and none may be
// a file that the chain has open already (an image that is its own data file would be destroyed by
// the first write). Used by one thread, while an image is being opened.
class ReferenceOpener final : public Opener {
 public:
  // Looks at what was opened, and may refuse it.
  using Inspector = std::function<Result<>(Store& store, const Reference& reference)>;

  // `seen`: the files of the chain so far; those opened here are added. `inspect` may be null.
  ReferenceOpener(const Gate& gate, std::string image_path, FileOptions options,
                  std::set<FileId>& seen, Inspector inspect = {})
      : gate_(gate),
        image_path_(std::move(image_path)),
        options_(options),
        seen_(seen),
        inspect_(std::move(inspect)) {}

  Result<std::unique_ptr<Store>> OpenReference(const Reference& reference, bool writable) override;

 private:
  const Gate& gate_;
  const std::string image_path_;
  const FileOptions options_;
  std::set<FileId>& seen_;
  const Inspector inspect_;
};

}  // namespace platter
