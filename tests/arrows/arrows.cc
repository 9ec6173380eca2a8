#include "tests/arrows/arrows.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

namespace platter::arrows {
namespace {

constexpr int kMostLines = 800;

// A room is a folder, subfolders included, unless a longer prefix has a line of its own. A room
// may include itself and what stands in `may`; "*" is everything.
struct Room {
  std::string_view folder;
  std::vector<std::string_view> may;
};

const std::vector<Room>& Rooms() {
  static const std::vector<Room> rooms = {
      {"base", {}},
      // io/codec sees only layer.h of io/, for the Codec that a caller names; see kSingleHeaders.
      {"io", {"base"}},
      {"io/codec", {"base"}},
      {"io/remote", {"base", "io", "io/codec"}},
      {"io/engine", {"base", "io", "io/codec"}},
      {"formats", {"base", "io", "io/codec"}},  // never io/engine: a format does not move bytes
      {"cow", {"base", "io", "io/codec", "io/engine", "io/remote", "formats"}},
      {"nbd", {"base", "io", "io/codec", "io/engine", "io/remote", "cow"}},
      {"fuse", {"base", "io", "io/codec", "io/engine", "cow"}},
      {"runner", {"base", "io", "io/codec", "io/engine", "cow"}},
      {"tools",
       {"base", "io", "io/codec", "io/engine", "io/remote", "formats", "cow", "nbd", "fuse",
        "runner"}},
      {"benchmarks", {"*"}},
      {"tests", {"*"}},
      {"docs", {"*"}},
  };
  return rooms;
}

struct SingleHeader {
  std::string_view room;
  std::string_view header;
};

// Headers that a room may include although the room they stand in is not open to it. Front ends
// look at format.h to name what cow/ gave them, never at a single format.
constexpr SingleHeader kSingleHeaders[] = {
    {"io/codec", "io/layer.h"},
    {"nbd", "formats/format.h"},
    {"fuse", "formats/format.h"},
    {"runner", "formats/format.h"},
};

// base/ makes no system calls, so it needs none of these.
constexpr std::string_view kSystemHeaders[] = {"fcntl.h",  "unistd.h",     "linux/",    "sys/",
                                               "fstream",  "filesystem",   "netinet/",  "arpa/",
                                               "iostream", "sys/socket.h", "liburing.h"};

bool IsUnder(std::string_view path, std::string_view folder) {
  return path.size() > folder.size() && path.starts_with(folder) && path[folder.size()] == '/';
}

const Room* RoomOf(std::string_view path) {
  const Room* best = nullptr;
  for (const Room& room : Rooms()) {
    if (!IsUnder(path, room.folder)) continue;
    if (best == nullptr || room.folder.size() > best->folder.size()) best = &room;
  }
  return best;
}

std::string_view Stem(std::string_view path) {
  std::string_view name = path.substr(path.rfind('/') + 1);
  return name.substr(0, name.rfind('.'));
}

// Unit tests, fuzz targets, benchmarks and what they share stand beside the code and may use all
// of it.
bool IsTest(std::string_view path) {
  if (path.find("/testing/") != std::string_view::npos) return true;
  std::string_view stem = Stem(path);
  return stem.ends_with("_test") || stem.ends_with("_fuzz") || stem.ends_with("_bench") ||
         stem.ends_with("_testing");
}

// "qcow2" of formats/qcow2/qcow2_disk.h; empty for formats/format.h and everything elsewhere.
std::string_view FormatOf(std::string_view path) {
  if (!IsUnder(path, "formats")) return {};
  path.remove_prefix(std::string_view("formats/").size());
  size_t slash = path.find('/');
  return slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
}

std::optional<std::string> RefuseSystemHeader(const SourceFile& file, std::string_view header) {
  if (!IsUnder(file.path, "base") || IsTest(file.path)) return std::nullopt;
  for (std::string_view bad : kSystemHeaders) {
    if (header == bad || (bad.ends_with('/') && header.starts_with(bad))) {
      return fmt::format("base/ makes no system calls and must not include <{}>", header);
    }
  }
  return std::nullopt;
}

// The rules by file name inside a format's folder.
std::optional<std::string> RefuseByName(const SourceFile& file, std::string_view header) {
  if (FormatOf(file.path).empty()) return std::nullopt;
  std::string_view stem = Stem(file.path);
  if (stem.ends_with("_disk") && !IsUnder(header, "base")) {
    return fmt::format("an on-disk structure needs base/ only, not {}", header);
  }
  if (stem.ends_with("_parse") && (header == "io/store.h" || header.ends_with("_layer.h"))) {
    return fmt::format("a parser works on spans, without I/O: not on {}", header);
  }
  return std::nullopt;
}

std::optional<std::string> RefuseQuoted(const SourceFile& file, const Room& room,
                                        std::string_view header) {
  if (IsUnder(header, "third_party")) return std::nullopt;
  const Room* target = RoomOf(header);
  if (target == nullptr) {
    return fmt::format("\"{}\" is in no room: write the path from the root", header);
  }
  if (IsTest(file.path) || room.may == std::vector<std::string_view>{"*"}) return std::nullopt;
  if (IsTest(header)) return fmt::format("code that is not a test includes {}", header);
  if (auto reason = RefuseByName(file, header)) return reason;

  std::string_view own = FormatOf(file.path);
  std::string_view other = FormatOf(header);
  bool registry = file.path == "formats/registry.cc";  // it lists them all, by their descriptors
  if (!other.empty() && room.folder == "formats" && own != other && !registry) {
    return fmt::format("formats never include one another: {}", header);
  }
  if (target == &room) return std::nullopt;
  for (std::string_view allowed : room.may) {
    if (allowed == target->folder) return std::nullopt;
  }
  for (const SingleHeader& single : kSingleHeaders) {
    if (single.room == room.folder && single.header == header) return std::nullopt;
  }
  return fmt::format("{}/ may not include {}/: {}", room.folder, target->folder, header);
}

std::string_view Trim(std::string_view text) {
  size_t begin = text.find_first_not_of(" \t\r");
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin);
}

// The header named by a line, if it is an include directive.
std::optional<Include> ParseLine(std::string_view line) {
  line = Trim(line);
  if (!line.starts_with('#')) return std::nullopt;
  line = Trim(line.substr(1));
  for (std::string_view word : {"include_next", "include", "import"}) {
    if (!line.starts_with(word)) continue;
    line = Trim(line.substr(word.size()));
    if (line.empty() || (line[0] != '"' && line[0] != '<')) return std::nullopt;
    size_t end = line.find(line[0] == '"' ? '"' : '>', 1);
    if (end == std::string_view::npos) return std::nullopt;
    return Include{
        .line = 0, .quoted = line[0] == '"', .path = std::string(line.substr(1, end - 1))};
  }
  return std::nullopt;
}

void CheckFile(const SourceFile& file, std::vector<std::string>& found) {
  auto lines = std::ranges::count(file.text, '\n');
  if (lines > kMostLines) {
    found.push_back(fmt::format("{}:{}: longer than {} lines", file.path, lines, kMostLines));
  }
  const Room* room = RoomOf(file.path);
  if (room == nullptr) {
    found.push_back(
        fmt::format("{}:1: in no room of the table; add the room to {} and to "
                    "docs/ARCHITECTURE.md",
                    file.path, "tests/arrows/arrows.cc"));
    return;
  }
  for (const Include& include : IncludesOf(file.text)) {
    auto reason = include.quoted ? RefuseQuoted(file, *room, include.path)
                                 : RefuseSystemHeader(file, include.path);
    if (reason) found.push_back(fmt::format("{}:{}: {}", file.path, include.line, *reason));
  }
}

}  // namespace

std::vector<Include> IncludesOf(std::string_view text) {
  std::vector<Include> includes;
  bool in_comment = false;
  for (int number = 1; !text.empty(); ++number) {
    size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    if (!in_comment) {
      if (auto include = ParseLine(line)) {
        include->line = number;
        includes.push_back(*include);
        continue;
      }
    }
    // Enough for block comments at the start of lines, as people write them; a /* inside a string
    // literal that is not closed on its line does not occur in our style.
    size_t slashes = line.find("//");
    if (!in_comment && slashes != std::string_view::npos) line = line.substr(0, slashes);
    size_t open = in_comment ? 0 : line.find("/*");
    if (open != std::string_view::npos)
      in_comment = line.find("*/", open) == std::string_view::npos;
  }
  return includes;
}

std::vector<std::string> Check(const std::vector<SourceFile>& files) {
  std::vector<std::string> found;
  for (const SourceFile& file : files) {
    if (IsSource(file.path)) CheckFile(file, found);
  }
  std::ranges::sort(found);
  return found;
}

bool IsSource(std::string_view path) {
  if (path.starts_with("bazel-") || path.starts_with("third_party/")) return false;
  if (path.starts_with('.') || path.find("/.") != std::string_view::npos) return false;
  for (std::string_view ending : {".h", ".cc", ".c", ".inc", ".hpp", ".cpp"}) {
    if (path.ends_with(ending)) return true;
  }
  return false;
}

}  // namespace platter::arrows
