#include "cow/set_parent.h"

#include <sys/stat.h>

#include <cerrno>
#include <climits>
#include <filesystem>

#include "base/bytes.h"

namespace platter {

namespace fs = std::filesystem;

Result<ParentFile> LookAtParent(const Disk& parent, const std::string& image_path,
                                const Gate& gate) {
  std::error_code error;
  ParentFile file{.path = parent.path(0), .info = parent.info()};
  if (gate.FindUrlOpener(file.path)) {
    file.relative = file.path;
    return file;
  }
  file.relative = fs::relative(file.path, fs::absolute(image_path).parent_path(), error).string();
  struct stat status;
  if (error || ::stat(file.path.c_str(), &status) != 0) {
    return FailErrno(error ? error.value() : errno, "parent '{}'", Printable(file.path, PATH_MAX));
  }
  file.modified = status.st_mtime;
  return file;
}

Result<> SetParent(const std::string& path, const DiskOptions& options, const Gate& gate,
                   const std::optional<Reference>& parent, const std::optional<ParentFile>& file) {
  DiskOptions writable = options;
  writable.file.writable = true;
  TopImage image = TRY(OpenTopImage(path, writable, gate, nullptr));
  const std::string what = fmt::format("{} '{}'", image.format->name, Printable(path, PATH_MAX));
  if (!image.format->set_parent) {
    if (!parent) return {};
    return Fail(Code::kUnsupported, "{}: images of this format have no parents", what);
  }
  OpenOptions open{.writable = true, .secret = options.secret, .opener = image.opener.get()};
  TRY_AS(what, image.format->set_parent(*image.store, open, parent, file));
  return {};
}

const Reference* ParentOf(const Info& info) {
  for (const Reference& reference : info.references) {
    if (reference.role == Reference::kParent) return &reference;
  }
  return nullptr;
}

Result<size_t> FindInChain(const std::vector<ChainEntry>& entries, const std::string& name,
                           const Gate& gate) {
  std::vector<Result<FileId>> ids;
  for (const ChainEntry& entry : entries) ids.push_back(gate.Identify(entry.path));
  const fs::path folder = fs::path(entries[0].path).parent_path();
  for (const std::string& path : {name, (folder / name).string()}) {
    auto wanted = gate.Identify(path);
    for (size_t i = 0; wanted && i < ids.size(); ++i) {
      if (ids[i] && *ids[i] == *wanted) return i;
    }
  }
  for (size_t i = 1; i < entries.size(); ++i) {
    const Reference* recorded = ParentOf(entries[i - 1].info);
    if (recorded && recorded->name == name) return i;
  }
  return Fail(Code::kOutOfRange, "'{}' is not among the parents of '{}'", Printable(name, PATH_MAX),
              Printable(entries[0].path, PATH_MAX));
}

std::string FormatToOpen(const std::vector<ChainEntry>& entries, size_t index) {
  const std::string& format = entries[index].info.format;
  if (format != "raw" || index == 0) return format;
  const Reference* recorded = ParentOf(entries[index - 1].info);
  return recorded && !recorded->format.empty() ? format : std::string();
}

}  // namespace platter
