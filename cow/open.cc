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
#include "cow/set_parent.h"
#include "cow/unwrap.h"
#include "formats/signatures.h"
#include "io/concat_store.h"
#include "io/remote/url.h"

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

// Files that belong to a package with a manifest have to be what it lists.
ReferenceOpener::Inspector InspectorOf(const Unwrapped& image) {
  if (!image.manifest) return {};
  return [manifest = image.manifest](Store& store, const Reference& reference) {
    return manifest->Verify(store, reference.name);
  };
}

// One image of a chain.
struct Link {
  std::unique_ptr<Layer> layer;
  std::string path;           // by which the gate knows it
  std::vector<Facts> around;  // what it was taken out of
  bool closed = false;        // it may name nothing outside of its archive
};

// One chain being opened.
class ChainOpener {
 public:
  ChainOpener(const DiskOptions& options, const Gate& gate, std::vector<std::string>* warnings)
      : options_(options), gate_(gate), warnings_(warnings) {}

  // A file that may not be part of the chain.
  void Exclude(const std::string& path) {
    if (auto id = gate_.Identify(path)) seen_.insert(*id);
  }

  // The image that the user named, out of what is around it.
  Result<Unwrapped> UnwrapTop(const std::string& name) {
    const MemberName file = SplitMember(name);
    UnwrapOptions unwrap = UnwrapAs(options_.format);
    unwrap.inside = options_.inside;
    unwrap.member = file.member;
    unwrap.writable = options_.file.writable;
    return Unwrap(TRY(OpenFiles(file.path)), file.path, unwrap, gate_, seen_, warnings_);
  }

  Result<Link> OpenTop(const std::string& name) {
    OpenOptions open;
    open.writable = options_.file.writable;
    open.snapshot = options_.snapshot;
    open.options = options_.options;
    open.options.erase(std::string(kPartsOption));
    return OpenImage(TRY(UnwrapTop(name)), std::move(open), warnings_);
  }

  // The files that were opened so far.
  const std::set<FileId>& files() const { return seen_; }

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
  Result<Link> OpenResolved(const std::string& child, const Reference& reference,
                            const std::string& path) {
    const std::string what = fmt::format("'{}': {}", DescribeUrl(child), Describe(reference));
    auto link = TRY(OpenBelow(path, FormatOfRecorded(reference.format), what, true));
    TRY_AS(what, CheckIdentity(reference, link.layer->info().identity));
    WarnIfChanged(what, reference, path);
    if (reference.format.empty()) {
      Warn(warnings_, fmt::format("{}: no format is recorded; by its content it is {}", what,
                                  link.layer->info().format));
    }
    return link;
  }

  // As above for a file that the user named in place of the recorded one.
  Result<Link> OpenInstead(const std::string& child, const Reference* recorded,
                           const std::string& path, const std::string& format) {
    const std::string what =
        fmt::format("'{}': parent '{}'", DescribeUrl(child), DescribeUrl(path));
    auto link = TRY(OpenBelow(path, format, what, false));
    if (recorded) TRY_AS(what, CheckIdentity(*recorded, link.layer->info().identity));
    return link;
  }

 private:
  // The file at `path` in `format` (empty: probed). `resolved`: the path is the gate's.
  Result<Link> OpenBelow(const std::string& path, const std::string& format,
                         const std::string& what, bool resolved) {
    const unsigned limit = std::min(gate_.policy().max_depth, 255u);
    if (layers_ >= limit) {
      return Fail(Code::kRefused, "{}: the chain is longer than {} images", what, limit);
    }
    FileOptions file = options_.file;
    file.writable = false;
    file.path = {.no_links = resolved, .must_be = TRY_AS(what, Remember(path))};
    auto store = TRY_AS(what, gate_.Open(path, file));
    // What a guess means for writers does not concern a parent.
    auto* warnings = format.empty() ? nullptr : warnings_;
    auto image =
        TRY_AS(what, Unwrap(std::move(store), path, UnwrapAs(format), gate_, seen_, warnings_));
    return TRY_AS(what, OpenImage(std::move(image), OpenOptions{}, warnings));
  }

  UnwrapOptions UnwrapAs(const std::string& format) const {
    UnwrapOptions unwrap;
    unwrap.format = format;
    unwrap.info_only = options_.info_only;
    unwrap.limits = options_.unpack;
    unwrap.file = options_.file;
    return unwrap;
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
    FileId id = TRY(gate_.Identify(path));
    if (seen_.insert(id).second) return id;
    return Fail(Code::kRefused, "the chain comes back to '{}', which is part of it already",
                DescribeUrl(path));
  }

  Result<std::unique_ptr<Store>> OpenFiles(const std::string& path) {
    FileOptions file = options_.file;
    file.path.must_be = TRY(Remember(path));
    auto store = TRY(gate_.Open(path, file));
    auto parts = options_.options.find(std::string(kPartsOption));
    if (parts == options_.options.end()) return store;

    std::vector<std::unique_ptr<Store>> stores;
    stores.push_back(std::move(store));
    for (const std::string& part : SplitParts(parts->second)) {
      file.path.must_be = TRY_AS("option 'parts'", Remember(part));
      stores.push_back(TRY_AS("option 'parts'", gate_.Open(part, file)));
    }
    return TRY(ConcatStore::Open(std::move(stores)));
  }

  Result<Link> OpenImage(Unwrapped image, OpenOptions open, std::vector<std::string>* warnings) {
    const Format* format = TRY(ChooseFormat(*image.store, image.format, warnings));
    open.guessed = image.format.empty() && format->name == "raw";
    open.secret = options_.secret;
    open.info_only = options_.info_only;
    ReferenceOpener files(gate_, image.path, options_.file, seen_, InspectorOf(image));
    Opener* opener = image.opener ? image.opener.get() : &files;
    open.opener = options_.info_only ? nullptr : opener;
    const std::string what = fmt::format("{} '{}'", format->name, DescribeUrl(image.path));
    auto layer = TRY_AS(what, format->open(std::move(image.store), open));
    for (const std::string& problem : layer->info().problems) {
      Warn(warnings_, fmt::format("{}: left out: {}", what, problem));
    }
    const uint64_t size = layer->info().size;
    if (image.capacity && *image.capacity != size) {
      Warn(warnings, fmt::format("{}: its size is {} bytes, its description says {}", what, size,
                                 *image.capacity));
    }
    ++layers_;
    return Link{std::move(layer), std::move(image.path), std::move(image.around), image.closed};
  }

  const DiskOptions& options_;
  const Gate& gate_;
  std::vector<std::string>* const warnings_;
  std::set<FileId> seen_;
  unsigned layers_ = 0;
};

using Chain = std::vector<Link>;

// Adds what stands below the last layer of `chain`, down to an image without a parent, or until it
// has `most` layers.
Result<> AddParents(ChainOpener& opener, Chain& chain, size_t most = SIZE_MAX) {
  while (const Reference* parent = ParentOf(chain.back().layer->info())) {
    if (chain.size() >= most) break;
    const std::string& child = chain.back().path;
    const std::string what = fmt::format("'{}'", DescribeUrl(child));
    if (chain.back().closed) {
      return Fail(Code::kRefused, "{}: {}: an image in an archive may not name what is outside",
                  what, Describe(*parent));
    }
    std::string path = TRY_AS(what, opener.FindParent(child, *parent));
    chain.push_back(TRY(opener.OpenResolved(child, *parent, path)));
  }
  return {};
}

Result<Chain> OpenChain(const std::string& name, const DiskOptions& options, const Gate& gate,
                        bool parents, std::vector<std::string>* warnings) {
  ChainOpener opener(options, gate, warnings);
  Chain chain;
  chain.push_back(TRY(opener.OpenTop(name)));
  if (!parents) return chain;
  if (!options.parent.empty() && options.layers > 1) {
    const Reference* recorded = ParentOf(chain[0].layer->info());
    chain.push_back(
        TRY(opener.OpenInstead(chain[0].path, recorded, options.parent, options.parent_format)));
  }
  TRY(AddParents(opener, chain, options.layers));
  return chain;
}

// As a Disk wants it.
struct Parts {
  std::vector<std::unique_ptr<Layer>> layers;
  std::vector<std::string> paths;
};
Parts Split(Chain chain) {
  Parts parts;
  for (Link& link : chain) {
    parts.layers.push_back(std::move(link.layer));
    parts.paths.push_back(std::move(link.path));
  }
  return parts;
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
  ProbeResult probed = TRY(Probe(store));
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

Result<TopImage> OpenTopImage(const std::string& name, const DiskOptions& options, const Gate& gate,
                              std::vector<std::string>* warnings) {
  ChainOpener opener(options, gate, warnings);
  auto image = TRY(opener.UnwrapTop(name));
  TopImage top;
  top.format = TRY(ChooseFormat(*image.store, image.format, warnings));
  top.store = std::move(image.store);
  top.files = std::make_unique<std::set<FileId>>(opener.files());
  top.opener = std::move(image.opener);
  if (!top.opener) {
    top.opener = std::make_unique<ReferenceOpener>(gate, image.path, options.file, *top.files,
                                                   InspectorOf(image));
  }
  return top;
}

Result<std::unique_ptr<Disk>> Disk::Open(const std::string& path, const DiskOptions& options,
                                         const Gate& gate, std::vector<std::string>* warnings) {
  bool parents = !options.no_backing && !options.info_only;
  Chain chain = TRY(OpenChain(path, options, gate, parents, warnings));
  const bool open_ended =
      chain.size() == options.layers && ParentOf(chain.back().layer->info()) != nullptr;
  Parts parts = Split(std::move(chain));
  std::unique_ptr<Disk> disk(new Disk(std::move(parts.layers), std::move(parts.paths)));
  disk->open_ended_ = open_ended;
  return disk;
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
                               "going to need {}--allow-external",
                               DescribeUrl(image_path), Describe(reference),
                               gate.FindUrlOpener(path) ? "" : "--trust DIR or "));
  }
  ChainOpener opener(options, gate, warnings);
  // An image that is to be replaced cannot be among its own parents.
  opener.Exclude(image_path);
  Chain chain;
  chain.push_back(TRY(opener.OpenResolved(image_path, reference, path)));
  TRY(AddParents(opener, chain));
  Parts parts = Split(std::move(chain));
  return std::unique_ptr<Disk>(new Disk(std::move(parts.layers), std::move(parts.paths)));
}

Result<std::vector<ChainEntry>> ReadChainInfo(const std::string& path, const DiskOptions& options,
                                              const Gate& gate, bool parents,
                                              std::vector<std::string>* warnings) {
  DiskOptions headers = options;
  headers.info_only = true;
  headers.file.writable = false;
  Chain chain = TRY(OpenChain(path, headers, gate, parents && !options.no_backing, warnings));
  std::vector<ChainEntry> entries;
  entries.reserve(chain.size());
  for (const Link& link : chain) entries.push_back({link.path, link.layer->info(), link.around});
  return entries;
}

}  // namespace platter
