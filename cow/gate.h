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
//
// A name that is a URL is opened by whoever knows its scheme (GatePolicy::urls) if the user gave
// it. An image may name a URL with --allow-external only: a stranger must not make us talk to
// machines that we can reach and he cannot. An image that came from a URL may name, by a relative
// name, what lies in the same folder of the same server or below it.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "formats/format.h"
#include "io/open_path.h"
#include "io/remote/url_opener.h"
#include "io/store.h"

namespace platter {

struct GatePolicy {
  bool allow_external = false;
  std::vector<std::string> trusted;  // directories; what lies below them is allowed too
  // Directories, trusted as well, in which a parent that is known by its id is looked for.
  std::vector<std::string> search;
  unsigned max_depth = 200;  // layers of a chain, at most 255
  // Who opens names that are URLs; a scheme that none of them knows is refused.
  std::vector<std::shared_ptr<const UrlOpener>> urls;
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

  // As OpenFile, or what a URL names. `options` but for `writable` are for files. kUnsupported for
  // what has the form of a URL, is no file, and nobody opens.
  Result<std::unique_ptr<Store>> Open(const std::string& name, const FileOptions& options) const;

  // Who opens `name`; null if it is the name of a file.
  const UrlOpener* FindUrlOpener(std::string_view name) const;

  // As IdentifyFile; of a URL something that no file has and no other URL either.
  Result<FileId> Identify(const std::string& name) const;

  // The absolute, symlink-free path of `name`, by which the image at `image_path` means
  // `reference`, if the policy lets it be opened. Relative names are relative to the image's
  // directory, as the image was named; "file:" is taken off; a URL stays as it is, and so is the
  // answer for a relative name in an image that has one; "json:", other protocols, empty names,
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
  Result<std::string> ResolveUrl(const std::string& image_path, const std::string& name) const;

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
