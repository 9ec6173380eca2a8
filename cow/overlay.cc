#include "cow/overlay.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <filesystem>
#include <span>
#include <utility>

#include "base/bytes.h"
#include "io/fd.h"

namespace platter {

namespace {

namespace fs = std::filesystem;

// A format in which an overlay over `parent` can be.
std::string OverlayFormat(const std::string& wanted, const std::string& parent) {
  if (!wanted.empty()) return wanted;
  auto format = FindFormat(parent);
  return format && (*format)->set_parent ? parent : "qcow2";
}

// The path by which an image at `image_path` is to name `file`.
std::string NameFrom(const std::string& image_path, const std::string& file) {
  std::error_code error;
  std::string name = fs::relative(file, fs::absolute(image_path).parent_path(), error).string();
  return error || name.empty() ? fs::absolute(file).string() : name;
}

// The rename is durable once the folder is. File systems that cannot sync one say EINVAL.
Result<> SyncFolder(const std::string& path) {
  const std::string folder = fs::absolute(path).parent_path().string();
  Fd fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || fsync(fd.get()) == 0 || errno == EINVAL || errno == EROFS) return {};
  return FailErrno(errno, "'{}': sync", Printable(folder, PATH_MAX));
}

// A file that is gone at the end, unless it is kept.
struct Leftover {
  std::string path;
  ~Leftover() {
    if (!path.empty()) unlink(path.c_str());
  }
  void Keep() { path.clear(); }
};

// Gives the file at `path` the name `base_path` as well; `name` is it if it is new.
Result<> AddName(const std::string& path, const std::string& base_path, Leftover& name) {
  if (link(path.c_str(), base_path.c_str()) == 0) {
    name.path = base_path;
    return SyncFolder(base_path);
  }
  const int why = errno;
  if (why == EEXIST && TRY(IdentifyFile(path)) == TRY(IdentifyFile(base_path))) return {};
  const std::string base = Printable(base_path, PATH_MAX);
  if (why == EEXIST) return Fail(Code::kRefused, "'{}' exists already", base);
  if (why == EPERM || why == EOPNOTSUPP || why == EXDEV || why == EMLINK) {
    return Fail(Code::kUnsupported,
                "'{}' cannot get the second name '{}': {}; take a folder of the same file system, "
                "or move the image and create an overlay by hand",
                Printable(path, PATH_MAX), base,
                why == EXDEV ? "another file system" : "the file system has no hard links");
  }
  return FailErrno(why, "'{}' as a second name of '{}'", base, Printable(path, PATH_MAX));
}

// The overlay at `overlay` takes the place of the image at `path`, and looks like it.
Result<> TakePlace(const std::string& overlay, const std::string& path, const FileId& image) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) return FailErrno(errno, "'{}'", Printable(path, PATH_MAX));
  if (TRY(IdentifyFile(path)) != image) {
    return Fail(Code::kRefused, "'{}' has become another file, by another program",
                Printable(path, PATH_MAX));
  }
  // Who may not give files away keeps this one. The owner first: that clears bits of the mode.
  (void)!chown(overlay.c_str(), status.st_uid, status.st_gid);
  (void)!chmod(overlay.c_str(), status.st_mode & 07777);
  if (rename(overlay.c_str(), path.c_str()) == 0) return {};
  return FailErrno(errno, "cannot rename the overlay to '{}'", Printable(path, PATH_MAX));
}

}  // namespace

std::string SnapshotPath(const std::string& path, const std::string& name) {
  fs::path whole(path);
  return (whole.parent_path() / (whole.stem().string() + "." + name + whole.extension().string()))
      .string();
}

Result<> TakeExternalSnapshot(const std::string& path, const std::string& base_path,
                              const ExternalSnapshotOptions& options, const Gate& gate,
                              std::vector<std::string>* warnings) {
  std::error_code error;
  const std::string real = fs::canonical(path, error).string();
  if (error) return FailErrno(error.value(), "'{}'", Printable(path, PATH_MAX));
  // Kept until the names are changed: nobody writes to the image meanwhile.
  DiskOptions look = options.open;
  look.no_backing = true;
  look.file.writable = false;
  look.file.force_share = false;
  const FileId id = TRY(IdentifyFile(real));
  auto image = TRY(Disk::Open(real, look, gate, warnings));
  struct stat status;
  if (stat(real.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) {
    return Fail(Code::kUnsupported, "'{}' is not a file", Printable(path, PATH_MAX));
  }
  Leftover name;
  TRY(AddName(real, base_path, name));

  const fs::path whole(real);
  Leftover overlay{
      (whole.parent_path() / ("." + whole.filename().string().substr(0, 200) + ".platter-overlay"))
          .string()};
  NewImageOptions create;
  create.format = OverlayFormat(options.overlay_format, image->info().format);
  create.create.options = options.overlay_options;
  create.create.secret = options.open.secret;
  create.create.parent =
      Reference{Reference::kParent, NameFrom(real, base_path), image->info().format};
  create.recorded_name = whole.filename().string();
  create.size_from_parent = true;
  create.replace = true;
  auto made = TRY(NewImage::Create(overlay.path, create, gate, warnings));
  TRY(made->Commit());
  TRY(TakePlace(overlay.path, real, id));
  overlay.Keep();
  name.Keep();
  return SyncFolder(real);
}

namespace {

class Cloner {
  static constexpr size_t kGroup = 32;  // each has some files open

 public:
  Cloner(const std::string& base, const CloneOptions& options, const Gate& gate,
         std::vector<std::string>* warnings)
      : base_path_(base), o_(options), gate_(gate), warnings_(warnings) {}

  Result<> Run(const std::vector<std::string>& targets) {
    DiskOptions open = o_.open;
    open.file.writable = false;
    open.no_backing = !o_.full;
    base_ = TRY(Disk::Open(base_path_, open, gate_, warnings_));
    const size_t snapshots = base_->info().snapshots.size();
    if (o_.full && snapshots > 0 && warnings_) {
      warnings_->push_back(fmt::format("'{}': {} snapshot{} left out of the copies",
                                       Printable(base_path_, PATH_MAX), snapshots,
                                       snapshots == 1 ? " is" : "s are"));
    }
    for (size_t first = 0; first < targets.size(); first += kGroup) {
      std::vector<std::unique_ptr<NewImage>> images;
      for (const std::string& target :
           std::span(targets).subspan(first).first(std::min(kGroup, targets.size() - first))) {
        images.push_back(TRY(Make(target)));
        warnings_ = nullptr;  // they would be the same again
      }
      for (auto& image : images) TRY(image->Commit());
    }
    return {};
  }

 private:
  Result<std::unique_ptr<NewImage>> Make(const std::string& target) {
    const Info& info = base_->info();
    NewImageOptions create;
    create.format =
        o_.full && o_.format.empty() ? info.format : OverlayFormat(o_.format, info.format);
    create.create.options = o_.options;
    create.create.secret = o_.open.secret;
    create.create.size = info.size;
    create.replace = o_.replace;
    if (!o_.full) {
      create.create.parent =
          Reference{Reference::kParent, NameFrom(target, base_path_), info.format};
      create.size_from_parent = true;
    }
    auto image = TRY(NewImage::Create(target, create, gate_, warnings_));
    if (o_.full) {
      CopyOptions copy = o_.copy;
      copy.target_is_zero = image->starts_zero();
      if (copy.progress) copy.progress->done = copy.progress->total = 0;
      TRY(Copy(*base_, image->disk(), {0, info.size}, copy));
    }
    return image;
  }

  const std::string& base_path_;
  const CloneOptions& o_;
  const Gate& gate_;
  std::vector<std::string>* warnings_;
  std::unique_ptr<Disk> base_;
};

}  // namespace

Result<> Clone(const std::string& base, const std::vector<std::string>& targets,
               const CloneOptions& options, const Gate& gate, std::vector<std::string>* warnings) {
  return Cloner(base, options, gate, warnings).Run(targets);
}

}  // namespace platter
