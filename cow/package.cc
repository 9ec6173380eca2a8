#include "cow/package.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <utility>

#include "base/bytes.h"
#include "io/buffer.h"
#include "io/concat_store.h"
#include "io/window_store.h"

namespace platter {

namespace {

constexpr uint64_t kMostText = 4 * kMiB;  // of a description or a manifest
constexpr size_t kMostChunks = 4096;

Result<std::string> ReadText(Store& store) {
  const uint64_t size = TRY(store.Size());
  if (size > kMostText) {
    return Fail(Code::kUnsupported, "has {} bytes, more than {} MiB", size, kMostText / kMiB);
  }
  std::string text(size, '\0');
  TRY(store.Read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

// A name in a description is a URL: "my%20disk.vmdk".
std::string Unescape(std::string_view url) {
  std::string name;
  auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c = static_cast<char>(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  for (size_t i = 0; i < url.size(); ++i) {
    int high = -1, low = -1;
    if (url[i] == '%' && i + 2 < url.size()) {
      high = digit(url[i + 1]);
      low = digit(url[i + 2]);
    }
    if (high < 0 || low < 0) {
      name += url[i];
    } else {
      name += static_cast<char>(high * 16 + low);
      i += 2;
    }
  }
  return name;
}

Reference ReferenceAsIs(const std::string& name) {
  Reference reference;
  reference.role = Reference::kData;
  reference.name = name;
  return reference;
}

// Most write names as they are, so that comes first.
Reference ReferenceTo(const std::string& href) {
  Reference reference = ReferenceAsIs(href);
  reference.paths = {href};
  std::string unescaped = Unescape(href);
  if (unescaped != href) reference.paths.push_back(std::move(unescaped));
  return reference;
}

std::string_view WithoutDot(std::string_view name) {
  return name.starts_with("./") ? name.substr(2) : name;
}

Result<std::vector<std::byte>> HashStore(Store& store, HashKind kind) {
  Hasher hasher(kind);
  Buffer buffer(kMiB);
  const uint64_t size = TRY(store.Size());
  for (uint64_t at = 0; at < size;) {
    Bytes piece = buffer.bytes().first(std::min<uint64_t>(buffer.size(), size - at));
    TRY(store.Read(at, piece));
    hasher.Update(piece);
    at += piece.size();
  }
  return hasher.Finish();
}

}  // namespace

// --- Members of an archive ----------------------------------------------------------------------

Result<std::unique_ptr<TarFiles>> TarFiles::Open(std::shared_ptr<Store> archive, std::string path) {
  auto members = TRY(ReadTar(*archive));
  return std::unique_ptr<TarFiles>(
      new TarFiles(std::move(archive), std::move(path), std::move(members)));
}

std::string TarFiles::NameWithEnding(std::string_view ending) const {
  auto found = std::ranges::find_if(
      members_, [&](const TarMember& member) { return member.name.ends_with(ending); });
  return found == members_.end() ? std::string() : found->name;
}

Result<std::unique_ptr<Store>> TarFiles::Open(const Reference& reference) {
  auto names = reference.paths.empty() ? std::vector{reference.name} : reference.paths;
  for (const std::string& name : names) {
    auto same = [&](const TarMember& member) {
      return WithoutDot(member.name) == WithoutDot(name);
    };
    auto found = std::ranges::find_if(members_, same);
    if (found != members_.end()) return TRY(WindowStore::Open(archive_, found->data));
  }
  return FailErrno(ENOENT, "{}: the archive has no such member, and others may not be named",
                   platter::Describe(reference));
}

Result<std::string> TarFiles::PathOf(const Reference&) { return path_; }

// --- The package --------------------------------------------------------------------------------

Result<Package> Package::Open(std::unique_ptr<PackageFiles> files, Store& ovf, std::string ovf_name,
                              const std::string& manifest_name, bool verify,
                              std::vector<std::string>* warnings) {
  Package package;
  package.files_ = std::move(files);
  package.ovf_name_ = std::move(ovf_name);
  TRY(package.LoadManifest(manifest_name, verify, warnings));
  TRY(package.Verify(ovf, package.ovf_name_));
  const std::string what = fmt::format("description '{}'", Printable(package.ovf_name_, PATH_MAX));
  package.ovf_ = TRY_AS(what, ParseOvf(TRY_AS(what, ReadText(ovf))));
  return package;
}

Result<> Package::LoadManifest(const std::string& name, bool verify,
                               std::vector<std::string>* warnings) {
  if (name.empty()) return {};
  const std::string what = fmt::format("manifest '{}'", Printable(name, PATH_MAX));
  auto store = files_->Open(ReferenceAsIs(name));
  if (!store && store.error().errno_value() == ENOENT) return {};
  if (!store) return std::unexpected(std::move(store.error()).WithPrefix(what));
  auto entries = TRY_AS(what, ParseManifest(TRY_AS(what, ReadText(**store))));
  manifest_ = std::make_shared<const Manifest>(std::move(entries), verify, warnings);
  return {};
}

Result<> Manifest::Verify(Store& store, const std::string& name) const {
  if (!verify_) return {};
  bool listed = false;
  for (const ManifestEntry& entry : entries_) {
    if (WithoutDot(entry.name) != WithoutDot(name)) continue;
    listed = true;
    std::string digest = Hex(TRY(HashStore(store, entry.kind)));
    if (digest == entry.digest) continue;
    return Fail(Code::kCorrupt, "'{}' is not what the manifest says: its {} is {}, listed is {}",
                Printable(name, PATH_MAX), HashName(entry.kind), digest, entry.digest);
  }
  if (!listed && warnings_) {
    warnings_->push_back(fmt::format("the manifest does not list '{}', so it was not verified",
                                     Printable(name, PATH_MAX)));
  }
  return {};
}

Result<std::unique_ptr<Store>> Package::OpenFile(const std::string& name) {
  auto store = TRY(files_->Open(ReferenceTo(name)));
  TRY(Verify(*store, name));
  return store;
}

Result<std::unique_ptr<Store>> Package::OpenFor(const Reference& reference) {
  auto store = TRY(files_->Open(reference));
  TRY(Verify(*store, reference.name));
  return store;
}

// DSP0243, "File references": "name.000000000", "name.000000001", ...
Result<std::unique_ptr<Store>> Package::OpenChunks(const OvfFile& file) {
  const std::string& name = file.href;
  std::vector<std::unique_ptr<Store>> chunks;
  while (true) {
    auto chunk = OpenFile(fmt::format("{}.{:09}", name, chunks.size()));
    if (!chunk && chunk.error().errno_value() == ENOENT && !chunks.empty()) break;
    if (!chunk) return chunk;
    if (chunks.size() == kMostChunks) {
      return Fail(Code::kUnsupported, "'{}' has more than {} chunks", Printable(name, PATH_MAX),
                  kMostChunks);
    }
    chunks.push_back(std::move(*chunk));
  }
  auto whole = TRY(ConcatStore::Open(std::move(chunks)));
  // Nothing else tells that the last chunks are missing.
  const uint64_t size = TRY(whole->Size());
  if (file.size && size < *file.size) {
    return Fail(Code::kCorrupt,
                "the chunks of '{}' have {} bytes together, its description says {}",
                Printable(name, PATH_MAX), size, *file.size);
  }
  return whole;
}

std::vector<const OvfDisk*> Package::DisksWithFiles() const {
  std::vector<const OvfDisk*> disks;
  for (const OvfDisk& disk : ovf_.disks) {
    if (ovf_.FindFile(disk.file_ref)) disks.push_back(&disk);
  }
  return disks;
}

// Null: `wanted` is no disk of the description.
Result<const OvfDisk*> Package::Choose(const std::string& wanted) const {
  const auto disks = DisksWithFiles();
  auto is_wanted = [&](const OvfDisk* disk) {
    const std::string& href = ovf_.FindFile(disk->file_ref)->href;
    return wanted == href || wanted == Unescape(href) || wanted == disk->id;
  };
  if (!wanted.empty()) {
    auto found = std::ranges::find_if(disks, is_wanted);
    return found == disks.end() ? nullptr : *found;
  }
  if (disks.size() == 1) return disks[0];
  if (disks.empty()) {
    return Fail(Code::kRefused, "'{}' describes no disk that has a file",
                Printable(ovf_name_, PATH_MAX));
  }
  std::string list;
  for (size_t i = 0; i < disks.size() && i < 20; ++i) {
    list +=
        fmt::format("{}{}", i == 0 ? "" : ", ", Printable(ovf_.FindFile(disks[i]->file_ref)->href));
  }
  return Fail(Code::kRefused,
              "it has {} disks; put the name of one behind the file's and a colon: {}",
              disks.size(), list);
}

Result<PackagedDisk> Package::OpenDisk(const std::string& wanted) {
  const OvfDisk* disk = TRY(Choose(wanted));
  PackagedDisk opened;
  opened.name = wanted;
  const OvfFile* chunks = nullptr;
  if (disk) {
    const OvfFile& file = *ovf_.FindFile(disk->file_ref);
    opened.name = file.href;
    opened.capacity = disk->capacity;
    chunks = file.chunked ? &file : nullptr;
    if (!disk->parent_ref.empty()) {
      return Fail(Code::kUnsupported,
                  "disk '{}' ('{}') holds only what differs from disk '{}' (ovf:parentRef), which "
                  "is not supported",
                  Printable(disk->id), Printable(file.href), Printable(disk->parent_ref));
    }
  }
  opened.store = TRY(chunks ? OpenChunks(*chunks) : OpenFile(opened.name));
  Reference first = ReferenceTo(chunks ? opened.name + ".000000000" : opened.name);
  opened.path = TRY(files_->PathOf(first));
  return opened;
}

Facts Package::Describe() const {
  std::vector<std::string> disks;
  for (const OvfDisk& disk : ovf_.disks) {
    const OvfFile* file = ovf_.FindFile(disk.file_ref);
    disks.push_back(file ? file->href : disk.id + " (starts empty)");
  }
  Facts facts = {{"description", ovf_name_}, {"disks", std::move(disks)}};
  if (manifest_) {
    std::vector<std::string> digests;
    for (const ManifestEntry& entry : manifest_->entries()) {
      digests.push_back(fmt::format("{}({})={}", HashName(entry.kind), entry.name, entry.digest));
    }
    facts.push_back({"manifest", std::move(digests)});
  }
  return facts;
}

}  // namespace platter
