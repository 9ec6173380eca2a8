// Opening an image and what it stands on.
//
// The user names the top image; every name below it was written by whoever made the image above.
// So each step goes through the gate, files are told apart by device and inode (a name may lead
// back to an image that is open by another path), and a parent is read in the format that its
// child recorded. Where the child recorded none, as old programs did, the parent is probed; that
// is safe enough for a parent, which is never written, and worth a warning.
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <filesystem>
#include <optional>
#include <utility>

#include "base/bytes.h"
#include "cow/disk.h"
#include "cow/search.h"
#include "formats/signatures.h"
#include "io/concat_store.h"

namespace platter {

namespace {

constexpr std::string_view kPartsOption = "parts";

void Warn(std::vector<std::string>* warnings, std::string text) {
  if (warnings) warnings->push_back(std::move(text));
}

// The names of option "parts": separated by colons; "\:" is a colon, "\\" a backslash.
std::vector<std::string> SplitParts(std::string_view list) {
  std::vector<std::string> names(1);
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i] == '\\' && i + 1 < list.size()) {
      names.back() += list[++i];
    } else if (list[i] == ':') {
      names.emplace_back();
    } else {
      names.back() += list[i];
    }
  }
  return names;
}

// QEMU records the names of its drivers for plain files and devices; all of them mean raw bytes.
std::string FormatOfRecorded(const std::string& recorded) {
  for (std::string_view raw : {"file", "host_device", "host_cdrom"}) {
    if (recorded == raw) return "raw";
  }
  return recorded;
}

// One chain being opened.
class ChainOpener {
 public:
  ChainOpener(const DiskOptions& options, const Gate& gate, std::vector<std::string>* warnings)
      : options_(options), gate_(gate), warnings_(warnings) {}

  // A file that may not be part of the chain.
  void Exclude(const std::string& path) {
    if (auto id = IdentifyFile(path)) seen_.insert(*id);
  }

  // The image that the user named.
  Result<std::unique_ptr<Layer>> OpenTop(const std::string& path) {
    OpenOptions open;
    open.writable = options_.file.writable;
    open.snapshot = options_.snapshot;
    open.options = options_.options;
    open.options.erase(std::string(kPartsOption));
    auto store = TRY(OpenFiles(path));
    return OpenImage(std::move(store), path, options_.format, std::move(open), warnings_);
  }

  // Where the parent that the image at `child` records as `reference` is, if it may be opened.
  Result<std::string> FindParent(const std::string& child, const Reference& reference) const {
    if (!reference.name.empty() || !reference.paths.empty()) {
      auto path = gate_.Resolve(child, reference);
      if (path || reference.id.empty() || path.error().errno_value() != ENOENT) return path;
    }
    std::vector<std::string> directories = gate_.policy().search;
    directories.insert(directories.begin(), std::filesystem::path(child).parent_path());
    if (directories[0].empty()) directories[0] = ".";
    std::string path = TRY(FindById(reference, *TRY(FindFormat(reference.format)), directories));
    return gate_.Resolve(child, reference, std::filesystem::absolute(path));
  }

  // The file at `path` as the parent that `child` records as `reference`.
  Result<std::unique_ptr<Layer>> OpenResolved(const std::string& child, const Reference& reference,
                                              const std::string& path) {
    const std::string what =
        fmt::format("'{}': {}", Printable(child, PATH_MAX), Describe(reference));
    auto layer = TRY(OpenBelow(path, FormatOfRecorded(reference.format), what, true));
    TRY_AS(what, CheckIdentity(reference, layer->info().identity));
    WarnIfChanged(what, reference, path);
    if (reference.format.empty()) {
      Warn(warnings_, fmt::format("{}: no format is recorded; by its content it is {}", what,
                                  layer->info().format));
    }
    return layer;
  }

  // As above for a file that the user named in place of the recorded one.
  Result<std::unique_ptr<Layer>> OpenInstead(const std::string& child, const Reference* recorded,
                                             const std::string& path, const std::string& format) {
    const std::string what =
        fmt::format("'{}': parent '{}'", Printable(child, PATH_MAX), Printable(path, PATH_MAX));
    auto layer = TRY(OpenBelow(path, format, what, false));
    if (recorded) TRY_AS(what, CheckIdentity(*recorded, layer->info().identity));
    return layer;
  }

 private:
  // The file at `path` in `format` (empty: probed). `resolved`: the path is the gate's.
  Result<std::unique_ptr<Layer>> OpenBelow(const std::string& path, const std::string& format,
                                           const std::string& what, bool resolved) {
    const unsigned limit = std::min(gate_.policy().max_depth, 255u);
    if (layers_ >= limit) {
      return Fail(Code::kRefused, "{}: the chain is longer than {} images", what, limit);
    }
    FileOptions file = options_.file;
    file.writable = false;
    file.path = {.no_links = resolved, .must_be = TRY_AS(what, Remember(path))};
    auto store = TRY_AS(what, Gate::OpenFile(path, file));
    // What a guess means for writers does not concern a parent.
    auto* warnings = format.empty() ? nullptr : warnings_;
    return TRY_AS(what, OpenImage(std::move(store), path, format, OpenOptions{}, warnings));
  }

  void WarnIfChanged(const std::string& what, const Reference& reference,
                     const std::string& path) const {
    struct stat status;
    if (!reference.modified || ::stat(path.c_str(), &status) != 0) return;
    if (status.st_mtime != *reference.modified) {
      Warn(warnings_,
           fmt::format("{}: its file was changed or copied since this image was made on "
                       "it (it is of {}, recorded is {})",
                       what, static_cast<int64_t>(status.st_mtime), *reference.modified));
    }
  }

  // An image that is reached a second time would be its own parent.
  Result<FileId> Remember(const std::string& path) {
    FileId id = TRY(IdentifyFile(path));
    if (seen_.insert(id).second) return id;
    return Fail(Code::kRefused, "the chain comes back to '{}', which is part of it already",
                Printable(path, PATH_MAX));
  }

  Result<std::unique_ptr<Store>> OpenFiles(const std::string& path) {
    FileOptions file = options_.file;
    file.path.must_be = TRY(Remember(path));
    auto store = TRY(Gate::OpenFile(path, file));
    auto parts = options_.options.find(std::string(kPartsOption));
    if (parts == options_.options.end()) return store;

    std::vector<std::unique_ptr<Store>> stores;
    stores.push_back(std::move(store));
    for (const std::string& part : SplitParts(parts->second)) {
      file.path.must_be = TRY_AS("option 'parts'", Remember(part));
      stores.push_back(TRY_AS("option 'parts'", Gate::OpenFile(part, file)));
    }
    return TRY(ConcatStore::Open(std::move(stores)));
  }

  Result<std::unique_ptr<Layer>> OpenImage(std::unique_ptr<Store> store, const std::string& path,
                                           const std::string& format_name, OpenOptions open,
                                           std::vector<std::string>* warnings) {
    const Format* format = TRY(ChooseFormat(*store, format_name, warnings));
    open.guessed = format_name.empty() && format->name == "raw";
    open.secret = options_.secret;
    open.info_only = options_.info_only;
    ReferenceOpener opener(gate_, path, options_.file, seen_);
    open.opener = options_.info_only ? nullptr : &opener;
    auto layer = TRY_AS(fmt::format("{} '{}'", format->name, Printable(path, PATH_MAX)),
                        format->open(std::move(store), open));
    for (const std::string& problem : layer->info().problems) {
      Warn(warnings_,
           fmt::format("{} '{}': left out: {}", format->name, Printable(path, PATH_MAX), problem));
    }
    ++layers_;
    return layer;
  }

  const DiskOptions& options_;
  const Gate& gate_;
  std::vector<std::string>* const warnings_;
  std::set<FileId> seen_;
  unsigned layers_ = 0;
};

const Reference* ParentOf(const Layer& layer) {
  for (const Reference& reference : layer.info().references) {
    if (reference.role == Reference::kParent) return &reference;
  }
  return nullptr;
}

struct Chain {
  std::vector<std::unique_ptr<Layer>> layers;
  std::vector<std::string> paths;

  void Add(std::unique_ptr<Layer> layer, std::string path) {
    layers.push_back(std::move(layer));
    paths.push_back(std::move(path));
  }
};

// Adds what stands below the last layer of `chain`, down to an image without a parent.
Result<> AddParents(ChainOpener& opener, Chain& chain) {
  while (const Reference* parent = ParentOf(*chain.layers.back())) {
    const std::string& child = chain.paths.back();
    std::string path =
        TRY_AS(fmt::format("'{}'", Printable(child, PATH_MAX)), opener.FindParent(child, *parent));
    auto layer = TRY(opener.OpenResolved(child, *parent, path));
    chain.Add(std::move(layer), std::move(path));
  }
  return {};
}

Result<Chain> OpenChain(const std::string& path, const DiskOptions& options, const Gate& gate,
                        bool parents, std::vector<std::string>* warnings) {
  ChainOpener opener(options, gate, warnings);
  Chain chain;
  chain.Add(TRY(opener.OpenTop(path)), path);
  if (!parents) return chain;
  if (!options.parent.empty()) {
    const Reference* recorded = ParentOf(*chain.layers[0]);
    chain.Add(TRY(opener.OpenInstead(path, recorded, options.parent, options.parent_format)),
              options.parent);
  }
  TRY(AddParents(opener, chain));
  return chain;
}

}  // namespace

Result<const Format*> ChooseFormat(Store& store, const std::string& name,
                                   std::vector<std::string>* warnings) {
  if (!name.empty()) {
    const Format* format = TRY(FindFormat(name));
    if (format->name == "raw") {
      // Only a hint: an unreadable first sector is for whoever reads it to tell.
      auto ends = ReadEnds(store);
      if (!ends) return format;
      auto signature = SignatureName(ends->head, ends->tail, ends->size);
      if (!signature.empty()) {
        Warn(warnings,
             fmt::format("'{}' looks like {}; its bytes are taken as they are, as -f raw says",
                         store.name(), signature));
      }
    }
    return format;
  }
  ProbeResult probed = TRY_AS(fmt::format("'{}'", store.name()), Probe(store));
  if (!probed.refusal.empty()) {
    return Fail(probed.refusal_code, "'{}' {}", store.name(), probed.refusal);
  }
  if (!probed.note.empty()) Warn(warnings, fmt::format("'{}': {}", store.name(), probed.note));
  if (probed.format) return probed.format;
  Warn(warnings, fmt::format("'{}': no image format is recognized, so it is taken for raw; name it "
                             "with -f raw. Until then writes that would make it look like another "
                             "format are refused",
                             store.name()));
  return FindFormat("raw");
}

Result<std::unique_ptr<Disk>> Disk::Open(const std::string& path, const DiskOptions& options,
                                         const Gate& gate, std::vector<std::string>* warnings) {
  bool parents = !options.no_backing && !options.info_only;
  Chain chain = TRY(OpenChain(path, options, gate, parents, warnings));
  return std::unique_ptr<Disk>(new Disk(std::move(chain.layers), std::move(chain.paths)));
}

Result<std::unique_ptr<Disk>> Disk::OpenParents(const std::string& image_path,
                                                const Reference& reference,
                                                const DiskOptions& options, const Gate& gate,
                                                std::vector<std::string>* warnings) {
  GatePolicy anywhere = gate.policy();
  anywhere.allow_external = true;
  std::string path = TRY(Gate(anywhere).Resolve(image_path, reference));
  if (!gate.Resolve(image_path, reference)) {
    Warn(warnings, fmt::format("'{}': {} is outside the image's directory: opening the image is "
                               "going to need --trust DIR or --allow-external",
                               Printable(image_path, PATH_MAX), Describe(reference)));
  }
  ChainOpener opener(options, gate, warnings);
  // An image that is to be replaced cannot be among its own parents.
  opener.Exclude(image_path);
  Chain chain;
  chain.Add(TRY(opener.OpenResolved(image_path, reference, path)), path);
  TRY(AddParents(opener, chain));
  return std::unique_ptr<Disk>(new Disk(std::move(chain.layers), std::move(chain.paths)));
}

Result<std::vector<ChainEntry>> ReadChainInfo(const std::string& path, const DiskOptions& options,
                                              const Gate& gate, bool parents,
                                              std::vector<std::string>* warnings) {
  DiskOptions headers = options;
  headers.info_only = true;
  headers.file.writable = false;
  Chain chain = TRY(OpenChain(path, headers, gate, parents && !options.no_backing, warnings));
  std::vector<ChainEntry> entries;
  entries.reserve(chain.layers.size());
  for (size_t i = 0; i < chain.layers.size(); ++i) {
    entries.push_back({chain.paths[i], chain.layers[i]->info()});
  }
  return entries;
}

}  // namespace platter
