#include "cow/create.h"

#include <sys/stat.h>

#include <climits>
#include <optional>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"
#include "formats/options.h"
#include "io/atomic_file.h"

namespace platter {

namespace {

// A file or device that is about to be written from the start.
struct Target {
  std::optional<AtomicFile> file;  // none: a block device, written in place
  std::unique_ptr<Store> store;

  static Result<Target> Open(const std::string& path, bool replace, bool direct) {
    struct stat status;
    Target target;
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

  Result<> Commit() { return file ? file->Commit() : Result<>{}; }
};

// Hands the one data file of a new image over, however it is called.
class Handover final : public Opener {
 public:
  explicit Handover(std::unique_ptr<Store> store) : store_(std::move(store)) {}

  Result<std::unique_ptr<Store>> OpenReference(const Reference& reference, bool) override {
    if (store_) return std::move(store_);
    return Fail(Code::kRefused, "a new image has no {}", Describe(reference));
  }

 private:
  std::unique_ptr<Store> store_;
};

// qemu-img's older way to say with -o what -b, -F and the size argument say.
Result<> TakeOldNames(CreateOptions& create) {
  if (auto size = TRY(SizeOption(create.options, "size"))) create.size = *size;
  auto name = FindOption(create.options, "backing_file");
  auto format = FindOption(create.options, "backing_fmt");
  if (name && !create.parent) {
    create.parent =
        Reference{Reference::kParent, std::string(*name), std::string(format.value_or(""))};
  } else if (format && create.parent && create.parent->format.empty()) {
    create.parent->format = *format;
  }
  for (const char* taken : {"size", "backing_file", "backing_fmt"}) create.options.erase(taken);
  return {};
}

// The file that option data_file means: relative to the image, as it is going to be looked for.
std::string DataFilePath(const std::string& image, std::string_view name) {
  size_t slash = image.rfind('/');
  if (name.starts_with('/') || slash == image.npos) return std::string(name);
  return image.substr(0, slash + 1) + std::string(name);
}

}  // namespace

struct NewImage::State {
  std::optional<Target> image, data;
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
  TRY(TakeOldNames(create));

  std::unique_ptr<Disk> parents;
  if (create.parent && options.open_parent) {
    DiskOptions open{.file = {.direct = options.direct}, .secret = create.secret};
    parents = TRY(Disk::OpenParents(path, *create.parent, open, gate, warnings));
    if (create.parent->format.empty()) create.parent->format = parents->info().format;
    if (options.size_from_parent) create.size = parents->info().size;
  }

  auto state = std::make_unique<State>();
  state->image.emplace(TRY(Target::Open(path, options.replace, options.direct)));
  std::unique_ptr<Store> image_store = std::move(state->image->store);
  bool raw_bytes = format->name == "raw";
  state->starts_zero = !raw_bytes || !image_store->caps().block_device;

  std::unique_ptr<Store> data_store;
  if (auto name = FindOption(create.options, "data_file"); name && !name->empty()) {
    std::string data_path = DataFilePath(path, *name);
    state->data.emplace(
        TRY_AS("data file", Target::Open(data_path, options.replace, options.direct)));
    data_store = std::move(state->data->store);
    create.data_store = data_store.get();
    if (data_store->caps().block_device) state->starts_zero = false;
  }

  TRY_AS(fmt::format("creating '{}'", Printable(path, PATH_MAX)),
         format->create(*image_store, create));
  Handover handover(std::move(data_store));
  OpenOptions open{.writable = true, .secret = create.secret, .opener = &handover};
  auto layer = TRY(format->open(std::move(image_store), open));
  state->disk = Disk::Stack(std::move(layer), path, std::move(parents));
  return std::unique_ptr<NewImage>(new NewImage(std::move(state)));
}

Result<> NewImage::Commit() {
  TRY(disk().Flush());
  state_->disk.reset();
  // The data first: an image that names a file which is not there is worse than a lone data file.
  if (state_->data) TRY(state_->data->Commit());
  return state_->image->Commit();
}

}  // namespace platter
