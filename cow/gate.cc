#include "cow/gate.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <optional>
#include <string_view>

#include "base/bytes.h"
#include "io/open_file.h"
#include "io/remote/url.h"

namespace platter {

namespace {

namespace fs = std::filesystem;

// The name without "file:", which says that what follows is a path whatever it looks like. A
// refusal for what is not the name of a file.
Result<std::string> PathOf(std::string_view name) {
  if (name.empty()) return Fail(Code::kRefused, "the name is empty");
  if (name.find('\0') != name.npos) return Fail(Code::kRefused, "the name holds a NUL byte");
  if (name.size() >= PATH_MAX) {
    return Fail(Code::kRefused, "the name has {} bytes, more than a path can have", name.size());
  }
  if (name.starts_with("json:")) {
    return Fail(Code::kRefused,
                "options in JSON could open anything; rebase the image onto a plain file name");
  }
  if (name.starts_with("file:")) {
    name.remove_prefix(5);
    if (name.starts_with("///")) name.remove_prefix(2);  // file:///etc/x
    if (name.empty()) return Fail(Code::kRefused, "the name is empty");
    return std::string(name);
  }
  size_t colon = name.find(':');
  if (colon != name.npos && colon < name.find('/')) {
    return Fail(Code::kRefused,
                "'{}:' names a protocol, and an image may name files only; if it is part of a file "
                "name, record it as ./{}",
                Printable(name.substr(0, colon)), Printable(name));
  }
  return std::string(name);
}

// The real path, or "" with errno set.
std::string RealPath(const std::string& path) {
  char* resolved = ::realpath(path.c_str(), nullptr);
  if (!resolved) return {};
  std::string copy = resolved;
  std::free(resolved);
  return copy;
}

// As RealPath for a file that need not be there: symbolic links of what is there are resolved.
std::string RealPathOfMissing(const std::string& path) {
  std::error_code error;
  fs::path resolved = fs::weakly_canonical(path, error);
  return error ? std::string() : resolved.string();
}

std::string DirectoryOf(const std::string& path) {
  size_t slash = path.rfind('/');
  if (slash == path.npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

bool IsBelow(const std::string& path, const std::string& directory) {
  if (directory.empty()) return false;
  if (directory == "/") return true;
  return path.size() > directory.size() && path.starts_with(directory) &&
         path[directory.size()] == '/';
}

Result<> CheckKind(const std::string& path, bool devices) {
  struct stat status;
  if (::stat(path.c_str(), &status) != 0) return FailErrno(errno, "{}", Printable(path, PATH_MAX));
  switch (status.st_mode & S_IFMT) {
    case S_IFREG: return {};
    case S_IFBLK:
      if (devices) return {};
      return Fail(Code::kRefused, "is a device; give --allow-external if you mean it");
    case S_IFDIR: return Fail(Code::kRefused, "is a directory");
    default: return Fail(Code::kRefused, "is neither a file nor a block device");
  }
}

}  // namespace

GatePolicy GatePolicy::FromEnvironment() {
  GatePolicy policy;
  const char* list = std::getenv("PLATTER_TRUST");
  std::string_view rest = list ? list : "";
  while (!rest.empty()) {
    size_t end = std::min(rest.find(':'), rest.size());
    if (end > 0) policy.trusted.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return policy;
}

Result<FileId> IdentifyFile(const std::string& path) {
  return IdentifyFile(TRY(OpenPath(path, O_PATH, {})));
}

std::string Describe(const Reference& reference) {
  const char* role = reference.role == Reference::kParent ? "parent" : "data file";
  if (reference.name.empty() && !reference.id.empty()) {
    return fmt::format("{} {{{}}}", role, Printable(reference.id));
  }
  return fmt::format("{} '{}'", role, Printable(reference.name, PATH_MAX));
}

Result<std::unique_ptr<Store>> Gate::OpenFile(const std::string& path, const FileOptions& options) {
  return OpenFileStore(path, FileStoreOptions{.writable = options.writable,
                                              .direct = options.direct,
                                              .lock = options.lock,
                                              .force_share = options.force_share,
                                              .path = options.path});
}

const UrlOpener* Gate::FindUrlOpener(std::string_view name) const {
  const std::string scheme = SchemeOf(name);
  if (scheme.empty()) return nullptr;
  for (const auto& opener : policy_.urls) {
    if (std::ranges::count(opener->schemes(), scheme) > 0) return opener.get();
  }
  return nullptr;
}

Result<std::unique_ptr<Store>> Gate::Open(const std::string& name,
                                          const FileOptions& options) const {
  if (const UrlOpener* opener = FindUrlOpener(name)) return opener->Open(name, options.writable);
  auto store = OpenFile(name, options);
  if (store || SchemeOf(name).empty() || store.error().errno_value() != ENOENT) return store;
  std::string known;
  for (const auto& opener : policy_.urls) {
    for (std::string_view scheme : opener->schemes()) known += fmt::format(" {}", scheme);
  }
  return Fail(Code::kUnsupported,
              "'{}': there is no such file, and {} URLs are not opened; known:{}",
              DescribeUrl(name), SchemeOf(name), known.empty() ? " none" : known);
}

Result<FileId> Gate::Identify(const std::string& name) const {
  if (!FindUrlOpener(name)) {
    auto id = IdentifyFile(name);
    // For Open to say what is wrong with the name.
    if (!id && !SchemeOf(name).empty()) TRY(Open(name, {.lock = false}));
    return id;
  }
  // No device has this number. Should two names ever share a hash, a chain of both is refused.
  return FileId{.device = UINT64_MAX, .inode = std::hash<std::string>{}(name)};
}

// The directory of the image as it was named and the one in which it really is: the user chose
// both when naming it.
bool Gate::Allows(const std::string& image_path, const std::string& real_path) const {
  if (policy_.allow_external) return true;
  if (IsBelow(real_path, RealPath(DirectoryOf(image_path)))) return true;
  std::string real_image = RealPath(image_path);
  if (!real_image.empty() && IsBelow(real_path, DirectoryOf(real_image))) return true;
  auto holds = [&](const std::string& directory) {
    return IsBelow(real_path, RealPath(directory));
  };
  return std::ranges::any_of(policy_.trusted, holds) || std::ranges::any_of(policy_.search, holds);
}

Result<std::string> Gate::Resolve(const std::string& image_path, const Reference& reference) const {
  if (reference.paths.empty()) return Resolve(image_path, reference, reference.name);
  std::optional<Error> first;
  for (const std::string& name : reference.paths) {
    auto path = Resolve(image_path, reference, name);
    if (path) return path;
    if (!first) first = std::move(path.error());
  }
  return std::unexpected(std::move(*first));
}

Result<std::string> Gate::Resolve(const std::string& image_path, const Reference& reference,
                                  const std::string& name) const {
  const std::string what = Describe(reference);
  if (FindUrlOpener(name)) return ResolveUrl(image_path, name).WithPrefix(what);
  std::string path = TRY_AS(what, PathOf(name));
  if (path[0] != '/') {
    if (FindUrlOpener(image_path)) return ResolveUrl(image_path, path).WithPrefix(what);
    path = DirectoryOf(image_path) + "/" + path;
  }

  // Whether a file exists outside is none of the image's business either: policy before errno.
  std::string real = RealPath(path);
  int missing = real.empty() ? errno : 0;
  std::string place = missing ? RealPathOfMissing(path) : real;
  if (place.empty()) return FailErrno(missing, "{}", what);
  if (!Allows(image_path, place)) {
    return Fail(Code::kRefused,
                "{} is outside the image's directory; give --trust DIR or --allow-external if you "
                "mean it",
                what);
  }
  if (missing) return FailErrno(missing, "{}", what);
  TRY_AS(what, CheckKind(real, policy_.allow_external));
  return real;
}

// Of a URL that an image names, or of a relative name in an image that has a URL.
Result<std::string> Gate::ResolveUrl(const std::string& image_path, const std::string& name) const {
  if (FindUrlOpener(name)) {
    if (policy_.allow_external) return name;
    return Fail(Code::kRefused,
                "an image may not make us connect to anything; give --allow-external if you mean "
                "it");
  }
  if (!FindUrlOpener(image_path)->has_folders()) {
    return Fail(Code::kRefused, "'{}' lies in no folder; name the parent with --parent",
                DescribeUrl(image_path));
  }
  return UrlBeside(image_path, name);
}

Result<std::unique_ptr<Store>> ReferenceOpener::OpenReference(const Reference& reference,
                                                              bool writable) {
  std::string path = TRY(gate_.Resolve(image_path_, reference));
  const std::string what = Describe(reference);
  // Looked up before it is opened: opening takes locks, and would only say that we hold them.
  FileId id = TRY_AS(what, gate_.Identify(path));
  if (!seen_.insert(id).second) {
    return Fail(Code::kRefused, "{} is a file that this image or one below it already uses", what);
  }
  FileOptions options = options_;
  options.writable = writable;
  options.path = {.no_links = true, .must_be = id};
  auto store = TRY_AS(what, gate_.Open(path, options));
  if (inspect_) TRY_AS(what, inspect_(*store, reference));
  return store;
}

}  // namespace platter
