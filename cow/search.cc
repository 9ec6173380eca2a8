#include "cow/search.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>

#include "base/bytes.h"
#include "cow/gate.h"
#include "formats/signatures.h"

namespace platter {

namespace {

namespace fs = std::filesystem;

// A folder with more files than this is not where somebody keeps a disk and its parents.
constexpr size_t kMostFiles = 10000;

std::vector<std::string> RegularFiles(const std::string& directory) {
  std::vector<std::string> paths;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code ignored;
    // Not links: they lead to files that nobody has allowed yet.
    if (fs::is_regular_file(entry->symlink_status(ignored)))
      paths.push_back(entry->path().string());
    if (paths.size() == kMostFiles) break;
  }
  std::ranges::sort(paths);
  return paths;
}

Result<Identity> IdentityOf(const std::string& path, const Format& format) {
  auto store = TRY(Gate::OpenFile(path, {.lock = false}));
  const Ends ends = TRY(ReadEnds(*store));
  if (format.probe(ends.head, ends.tail, ends.size) == 0) return Identity{};
  auto layer = TRY(format.open(std::move(store), OpenOptions{.info_only = true}));
  return layer->info().identity;
}

bool IsWantedVersion(const Reference& reference, const Identity& identity) {
  return reference.versions.empty() || std::ranges::count(reference.versions, identity.version) > 0;
}

std::string Quoted(const std::vector<std::string>& versions) {
  std::string text;
  for (const std::string& version : versions) {
    text += fmt::format("{}{}", text.empty() ? "" : " or ", Printable(version));
  }
  return text;
}

}  // namespace

Result<std::string> FindById(const Reference& reference, const Format& format,
                             const std::vector<std::string>& directories) {
  std::optional<std::string> other_version;
  for (const std::string& directory : directories) {
    for (std::string& path : RegularFiles(directory)) {
      auto identity = IdentityOf(path, format);
      if (!identity || identity->id != reference.id) continue;
      if (IsWantedVersion(reference, *identity)) return std::move(path);
      if (!other_version) other_version = std::move(path);
    }
  }
  if (other_version) return std::move(*other_version);
  return FailErrno(ENOENT,
                   "{}: no {} image in the image's directory has this id; name it with "
                   "--parent FILE, or where to look with --search DIR",
                   Describe(reference), format.name);
}

Result<> CheckIdentity(const Reference& reference, const Identity& identity) {
  if (!reference.id.empty() && reference.id != identity.id) {
    return Fail(Code::kRefused,
                "is not the image that this one was made on: its id is {}, and {} is "
                "recorded",
                identity.id.empty() ? "none" : Printable(identity.id), Printable(reference.id));
  }
  if (!IsWantedVersion(reference, identity)) {
    return Fail(Code::kRefused,
                "was changed after this image was made on it, or is another: it is at "
                "{}, and {} is recorded",
                identity.version.empty() ? "no version" : Printable(identity.version),
                Quoted(reference.versions));
  }
  return {};
}

}  // namespace platter
