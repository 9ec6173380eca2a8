// The registry of formats, and what a format offers beside the Layer contract: probe, open, create,
// check, measure. Formats never include one another; what one needs to open beside its own file
// (an external data file, an extent) it asks of the Opener, which is cow/Gate.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/codec/cipher.h"
#include "io/layer.h"
#include "io/store.h"

namespace platter {

// Opens what an image names. Implemented by cow/Gate (policy) and by tests.
class Opener {
 public:
  virtual ~Opener() = default;
  // A data file or extent named by the image, never a parent. kRefused names reference and flag.
  virtual Result<std::unique_ptr<Store>> OpenReference(const Reference& reference,
                                                       bool writable) = 0;
};

// Makes the files that a new image consists of beside its own. Implemented by cow/create and by
// tests.
class FileMaker {
 public:
  virtual ~FileMaker() = default;
  // An empty file (or a device) that the image is going to name `name`. The maker owns it, at least
  // until the image is made; the Opener with which the new image is then opened hands it out.
  virtual Result<Store*> MakeFile(const std::string& name) = 0;
};

struct OpenOptions {
  bool writable = false;
  const Secret* secret = nullptr;  // passphrase, if one was given
  std::string snapshot;            // id or name of an internal snapshot to show; read-only
  Opener* opener = nullptr;        // null: an image that needs another file is refused
  // For info: everything the headers say, without opening data files or asking for a passphrase.
  // The layer can be asked for info() only.
  bool info_only = false;
  // Nobody said that this is the format: it is what remained when no signature matched. raw then
  // refuses writes that would make the image look like another format at its next open.
  bool guessed = false;
  // `create` has just made the image, and nobody else knows it: ids that say which content this is
  // need not change with the first write.
  bool fresh = false;
  // Options of the format by name (raw: "offset", "size"), as given with --image-opts style -o.
  std::map<std::string, std::string> options;
};

// The parent of a new image as it was found.
struct ParentFile {
  std::string path;      // absolute, without symbolic links
  std::string relative;  // from the new image's folder
  int64_t modified = 0;  // seconds since the Epoch
  Info info;
};

struct CreateOptions {
  uint64_t size = 0;                           // bytes the guest sees
  std::map<std::string, std::string> options;  // -o name=value; an unknown name is kUnsupported
  std::optional<Reference> parent;             // recorded as written, not opened
  std::optional<ParentFile> parent_file;       // what `parent` is; empty: nobody looked
  std::string file_name = "image";             // the image's own, without folders
  const Secret* secret = nullptr;              // for encrypt.format
  FileMaker* files = nullptr;                  // null: an image that needs more files is refused
  bool reproducible = false;                   // no random ids, times from SOURCE_DATE_EPOCH
};

struct OptionHelp {
  std::string_view name, help;  // as printed by `-o help`
};

// What `measure` says: bytes of file for a disk whose data is `required`/all of it allocated.
struct MeasureResult {
  uint64_t required = 0, fully_allocated = 0;
  std::optional<uint64_t> bitmaps;
};

// What check found. The counts decide the exit code: errors 1, corruptions 2, leaks 3 as qemu-img.
struct CheckReport {
  struct Finding {
    enum Kind : uint8_t { kLeak, kCorruption, kError } kind;
    std::string text;  // names structure and offset
    bool fixed = false;
  };
  std::vector<Finding> findings;  // the first 1000; the counts go on
  uint64_t leaks = 0, corruptions = 0, errors = 0;
  uint64_t leaks_fixed = 0, corruptions_fixed = 0;
  uint64_t image_end = 0;  // bytes: end of the last used host byte
  uint64_t total_units = 0, allocated_units = 0, compressed_units = 0, fragmented_units = 0;
  void Add(Finding::Kind kind, std::string text, bool fixed = false);
};

struct CheckOptions {
  enum Repair : uint8_t { kNone, kLeaks, kAll } repair = kNone;
};

class UnitSet;

// Takes the next bytes of a stream.
using ByteSink = std::function<Result<>(ConstBytes)>;

// A new image that is written front to back, without seeking: everything that names guest data
// comes before it, so which units hold some must be known first. One thread.
class ImageStream {
 public:
  virtual ~ImageStream() = default;
  // Bytes: guest data is in the image by whole units of this size.
  virtual uint64_t unit() const = 0;
  // Puts all that comes before guest data. The caller goes on with the units of `used` (numbers of
  // units), ascending, each whole: what the disk's last one lacks is zeros. That is the image.
  virtual Result<> Head(const UnitSet& used, const ByteSink& sink) = 0;
};

struct Format {
  std::string_view name;  // "qcow2"
  std::span<const OptionHelp> create_options;

  // How sure the format is that `head` (the first bytes, at most 4096) and `tail` (the last 512, or
  // fewer) of a store of `size` bytes are its own: 0 no, 100 its magic. raw answers 0: it is what
  // remains, and only where the caller said so.
  int (*probe)(ConstBytes head, ConstBytes tail, uint64_t size);

  Result<std::unique_ptr<Layer>> (*open)(std::unique_ptr<Store> store, const OpenOptions& options);

  // Writes an empty image into an empty (or to be overwritten) store; ends with Sync. The caller
  // owns names, locks and atomicity.
  Result<> (*create)(Store& store, const CreateOptions& options);

  // Null where the format has no metadata to check.
  Result<CheckReport> (*check)(Store& store, const OpenOptions& open, const CheckOptions& options);

  // Size of an image of `options` in which `data` (ascending, disjoint) is allocated.
  Result<MeasureResult> (*measure)(const CreateOptions& options, uint64_t allocated_bytes,
                                   std::span<const Range> data);

  // Null where the format cannot be written as a stream; kUnsupported where these options cannot.
  Result<std::unique_ptr<ImageStream>> (*stream)(const CreateOptions& options) = nullptr;

  // Records another parent in an image, or none; `file` is what `parent` is, where somebody looked.
  // Guest data stays as it is. Durable on return; a crash leaves the record of before or of after.
  // Null where the format has no parents.
  Result<> (*set_parent)(Store& store, const OpenOptions& open,
                         const std::optional<Reference>& parent,
                         const std::optional<ParentFile>& file) = nullptr;
};

// All formats, in probe order.
std::span<const Format* const> AllFormats();
// kUnsupported, listing the names there are.
Result<const Format*> FindFormat(std::string_view name);

// What the content says. `format` is null where nothing matched (raw, if the caller says so).
// A signature at the start decides before one at the end: everything in such an image hangs on its
// header, while trailers are left behind when a file is written over or appended to.
struct ProbeResult {
  const Format* format = nullptr;
  // The bytes are of a kind that must not be taken for raw (gzip, xz, zstd, bzip2, tar, ISO 9660
  // without a partition table, a format that we do not read yet): what it is and what to do. A
  // predicate for the image's name: "is VMDK, which is not supported yet; ...".
  std::string refusal;
  Code refusal_code = Code::kRefused;  // kUnsupported: a format that we do not read yet
  // Something the user should know, empty or a whole sentence part: "its last bytes are ...".
  std::string note;
};
Result<ProbeResult> Probe(Store& store);
// The format whose signature is at the start, null if there is none: where the rest is out of
// reach.
const Format* ProbeHead(ConstBytes head);

// The known signatures of formats and wrappers, for messages: "VMDK", "gzip", "" if none. `head`
// and `tail` as for Format::probe, so ISO 9660 (a signature at 32 KiB) is left to Probe.
std::string_view SignatureName(ConstBytes head, ConstBytes tail, uint64_t size);

}  // namespace platter
