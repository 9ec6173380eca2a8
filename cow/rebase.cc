#include "cow/rebase.h"

#include <climits>
#include <filesystem>
#include <utility>

#include "base/bytes.h"
#include "cow/copy_up.h"
#include "cow/set_parent.h"

namespace platter {

namespace {

// Nobody could open the image again.
Result<> RefuseItself(const std::string& path, const Reference& parent, const Gate& gate) {
  GatePolicy anywhere = gate.policy();
  anywhere.allow_external = true;
  const Gate open(anywhere);
  auto named = open.Resolve(path, parent);
  if (!named || TRY(open.Identify(*named)) != TRY(open.Identify(path))) return {};
  return Fail(Code::kRefused, "'{}' cannot be its own parent", Printable(path, PATH_MAX));
}

// Where nobody named the parent's format, it is as its content says; `file` is told what is known
// of it. Some formats record nothing but a name, which is good also if there is no such file.
Result<> LookAtNewParent(const std::string& path, const RebaseOptions& options, const Gate& gate,
                         std::vector<std::string>* warnings, Reference& parent,
                         std::optional<ParentFile>& file) {
  DiskOptions open{.file = {.direct = options.open.file.direct}, .secret = options.open.secret};
  TRY(RefuseItself(path, parent, gate));
  auto parents = Disk::OpenParents(path, parent, open, gate, warnings);
  if (parents) {
    if (parent.format.empty()) parent.format = (*parents)->info().format;
    file = TRY(LookAtParent(**parents, path, gate));
    return {};
  }
  if (options.open.format == "qcow2" && !parent.format.empty()) return {};
  return std::unexpected(std::move(parents.error()));
}

// Makes the image independent of its old parents where the new one differs; what is known of that.
Result<std::optional<ParentFile>> CopyDifferences(const std::string& path,
                                                  const RebaseOptions& options, const Gate& gate,
                                                  std::vector<std::string>* warnings,
                                                  std::optional<Reference>& parent) {
  DiskOptions open = options.open;
  open.file.writable = true;
  auto disk = TRY(Disk::Open(path, open, gate, warnings));
  if (!disk->info().snapshots.empty()) {
    return Fail(Code::kRefused,
                "'{}' has internal snapshots, which would not read the same over another parent: "
                "delete them first, or rebase with --unsafe",
                Printable(path, PATH_MAX));
  }
  std::unique_ptr<Disk> instead;
  std::optional<ParentFile> file;
  if (parent) {
    DiskOptions below{.file = {.direct = open.file.direct}, .secret = open.secret};
    instead = TRY(Disk::OpenParents(path, *parent, below, gate, warnings));
    if (parent->format.empty()) parent->format = instead->info().format;
    file = TRY(LookAtParent(*instead, path, gate));
  }
  TRY(CopyUp(*disk, instead.get(), options.threads, options.progress));
  TRY(disk->Flush());
  return file;
}

}  // namespace

Result<> Rebase(const std::string& path, const RebaseOptions& options, const Gate& gate,
                std::vector<std::string>* warnings) {
  DiskOptions open = options.open;
  RebaseOptions known = options;
  if (open.format.empty()) {
    DiskOptions look = open;
    look.no_backing = true;
    auto entries = TRY(ReadChainInfo(path, look, gate, /*parents=*/false, warnings));
    known.open.format = open.format = entries[0].info.format;
  }
  const Format* format = TRY(FindFormat(open.format));
  if (!format->set_parent) {
    return Fail(Code::kUnsupported, "'{}': {} images have no parents", Printable(path, PATH_MAX),
                format->name);
  }
  std::optional<Reference> parent = options.parent;
  std::optional<ParentFile> file;
  if (!options.unsafe) {
    file = TRY(CopyDifferences(path, known, gate, warnings, parent));
  } else if (parent) {
    TRY(LookAtNewParent(path, known, gate, warnings, *parent, file));
  }
  return SetParent(path, open, gate, parent, file);
}

Result<> Stream(const std::string& path, const std::string& base, RebaseOptions options,
                const Gate& gate, std::vector<std::string>* warnings) {
  namespace fs = std::filesystem;
  options.unsafe = false;
  options.parent.reset();
  if (base.empty()) return Rebase(path, options, gate, warnings);
  auto entries = TRY(ReadChainInfo(path, options.open, gate, /*parents=*/true, warnings));
  const size_t at = TRY(FindInChain(entries, base, gate));
  if (at == 0) {
    return Fail(Code::kRefused, "'{}' is the image itself, and no parent of it",
                Printable(base, PATH_MAX));
  }
  if (at == 1) return {};  // nothing in between
  std::error_code error;
  std::string name =
      fs::relative(entries[at].path, fs::absolute(path).parent_path(), error).string();
  if (error || name.empty()) name = entries[at].path;
  options.parent = Reference{Reference::kParent, name, entries[at].info.format};
  return Rebase(path, options, gate, warnings);
}

}  // namespace platter
