#include "cow/create.h"

#include <sys/stat.h>

#include <cerrno>
#include <climits>
#include <map>
#include <optional>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"
#include "cow/set_parent.h"
#include "formats/options.h"
#include "io/atomic_file.h"
#include "io/remote/url.h"

namespace platter {

namespace {

constexpr uint64_t kSector = 512;

// A file or device that is about to be written from the start.
struct Target {
  std::optional<AtomicFile> file;  // none: a block device or a URL, written in place
  std::unique_ptr<Store> store;

  static Result<Target> Open(const Gate& gate, const std::string& path, bool replace, bool direct) {
    struct stat status;
    Target target;
    if (gate.FindUrlOpener(path)) {
      if (!replace) {
        return Fail(Code::kRefused,
                    "'{}' is there already; give --force to overwrite what it holds",
                    DescribeUrl(path));
      }
      target.store = TRY(gate.Open(path, {.writable = true}));
      return target;
    }
    if (::stat(path.c_str(), &status) == 0 && S_ISBLK(status.st_mode)) {
      if (!replace) {
        return Fail(Code::kRefused,
                    "'{}' is a block device; give --force to overwrite what it holds",
                    Printable(path, PATH_MAX));
      }
      target.store = TRY(Gate::OpenFile(path, {.writable = true, .direct = direct}));
      return target;
    }
    target.file.emplace(TRY(AtomicFile::Create(path, {.replace = replace, .direct = direct})));
    target.store = target.file->TakeStore();
    return target;
  }

  Result<> DropOld() { return file ? file->DropOld() : Result<>{}; }
  Result<> Commit() { return file ? file->Commit() : Result<>{}; }
};

// The further files of a new image: made while it is created, handed out when it is opened, and
// committed before it. Names are relative to the image, as they are going to be looked for.
class Companions final : public FileMaker, public Opener {
 public:
  Companions(const Gate& gate, const std::string& image_path, const NewImageOptions& options)
      : gate_(gate),
        folder_(FolderOf(image_path)),
        replace_(options.replace),
        direct_(options.direct) {}

  Result<Store*> MakeFile(const std::string& name) override {
    const std::string path = name.starts_with('/') ? name : folder_ + name;
    Target target = TRY(Target::Open(gate_, path, replace_, direct_));
    Store* store = target.store.get();
    on_device_ = on_device_ || store->caps().block_device;
    if (!targets_.emplace(name, std::move(target)).second) {
      return Fail(Code::kRefused, "'{}' is wanted twice", Printable(name, PATH_MAX));
    }
    return store;
  }

  Result<std::unique_ptr<Store>> OpenReference(const Reference& reference, bool) override {
    auto found = targets_.find(reference.name);
    if (found != targets_.end() && found->second.store) return std::move(found->second.store);
    return Fail(Code::kRefused, "a new image has no {}", Describe(reference));
  }

  Result<> Commit() {
    for (auto& [name, target] : targets_) TRY(target.Commit());
    return {};
  }

  bool empty() const { return targets_.empty(); }
  bool on_device() const { return on_device_; }

 private:
  static std::string FolderOf(const std::string& path) {
    size_t slash = path.rfind('/');
    return slash == path.npos ? std::string() : path.substr(0, slash + 1);
  }

  const Gate gate_;
  const std::string folder_;  // "" or with a slash at its end
  const bool replace_, direct_;
  std::map<std::string, Target> targets_;
  bool on_device_ = false;
};

std::string FileName(const std::string& path) { return path.substr(path.rfind('/') + 1); }

}  // namespace

struct NewImage::State {
  std::optional<Target> image;
  std::optional<Companions> companions;
  std::unique_ptr<Disk> disk;  // before what it writes to is committed or removed
  bool starts_zero = true;
};

NewImage::NewImage(std::unique_ptr<State> state) : state_(std::move(state)) {}
NewImage::~NewImage() = default;

Disk& NewImage::disk() {
  CHECK(state_->disk);
  return *state_->disk;
}

bool NewImage::starts_zero() const { return state_->starts_zero; }

Result<std::unique_ptr<NewImage>> NewImage::Create(const std::string& path,
                                                   const NewImageOptions& options, const Gate& gate,
                                                   std::vector<std::string>* warnings) {
  const Format* format = TRY(FindFormat(options.format));
  CreateOptions create = options.create;
  TRY(TakeCommonOptions(create));

  std::unique_ptr<Disk> parents;
  if (create.parent && options.open_parent) {
    DiskOptions open{.file = {.direct = options.direct}, .secret = create.secret};
    parents = TRY(Disk::OpenParents(path, *create.parent, open, gate, warnings));
    if (create.parent->format.empty()) create.parent->format = parents->info().format;
    if (options.size_from_parent) create.size = parents->info().size;
    create.parent_file = TRY(LookAtParent(*parents, path, gate));
  }

  auto state = std::make_unique<State>();
  state->image.emplace(TRY(Target::Open(gate, path, options.replace, options.direct)));
  std::unique_ptr<Store> image_store = std::move(state->image->store);
  bool raw_bytes = format->name == "raw";
  state->starts_zero = !raw_bytes || !image_store->caps().block_device;

  Companions& companions = state->companions.emplace(gate, path, options);
  create.file_name = FileName(options.recorded_name.empty() ? path : options.recorded_name);
  create.files = &companions;
  TRY_AS(fmt::format("creating '{}'", Printable(path, PATH_MAX)),
         format->create(*image_store, create));
  if (companions.on_device()) state->starts_zero = false;
  OpenOptions open{.writable = true, .secret = create.secret, .opener = &companions, .fresh = true};
  auto layer = TRY(format->open(std::move(image_store), open));
  const uint64_t size = layer->info().size;
  const bool as_asked = size == create.size || size == RoundUp(create.size, kSector);
  if (warnings && !raw_bytes && !as_asked) {
    warnings->push_back(
        fmt::format("'{}': the disk has {} bytes and not {}, as {} has it; -o help "
                    "says if there is a way to have it exact",
                    Printable(path, PATH_MAX), size, create.size, format->name));
  }
  state->disk = Disk::Stack(std::move(layer), path, std::move(parents));
  return std::unique_ptr<NewImage>(new NewImage(std::move(state)));
}

Result<> NewImage::Commit() {
  TRY(disk().Flush());
  state_->disk.reset();
  // The image last: one that names a file which is not there is worse than a lone data file. And no
  // old image may stand over new files: whoever opened it would read neither the old disk nor the
  // new one.
  if (!state_->companions->empty()) TRY(state_->image->DropOld());
  TRY(state_->companions->Commit());
  return state_->image->Commit();
}

}  // namespace platter
