#include "cow/unwrap.h"

#include <sys/stat.h>

#include <algorithm>
#include <climits>
#include <utility>

#include "base/bytes.h"
#include "formats/signatures.h"
#include "io/remote/url.h"

namespace platter {

namespace {

// The first bytes, as many as signatures need. Asks for the size only where the file is shorter,
// since to know it a compressed file may have to be unpacked wholly.
Result<std::vector<std::byte>> ReadHead(Store& store) {
  std::vector<std::byte> head(kHeadBytes);
  if (store.Read(0, Bytes(head))) return head;
  head.resize(std::min<uint64_t>(head.size(), TRY(store.Size())));
  TRY(store.Read(0, Bytes(head)));
  return head;
}

// For info of an image whose header is at its start, in a compressed file that is too long to look
// for its end: the size is unknown, and reads past the end of what may be unpacked fail.
class EndlessStore final : public Store {
 public:
  EndlessStore(std::unique_ptr<Store> inner, uint64_t size)
      : inner_(std::move(inner)), size_(size) {}

  Caps caps() const override { return inner_->caps(); }
  const std::string& name() const override { return inner_->name(); }
  bool writable() const override { return false; }
  Result<uint64_t> Size() const override { return size_; }
  using Store::Read;
  using Store::Write;
  Result<> Read(uint64_t at, std::span<const iovec> into) override {
    return inner_->Read(at, into);
  }
  Result<> Write(uint64_t at, std::span<const iovec> from) override {
    return inner_->Write(at, from);
  }
  Result<> Zero(Range range, bool may_unmap) override { return inner_->Zero(range, may_unmap); }
  Result<> Sync() override { return {}; }
  Result<> Resize(uint64_t size) override { return inner_->Resize(size); }
  Result<> Allocate(Range range) override { return inner_->Allocate(range); }
  Result<Run> FindRun(uint64_t at) override { return Run{.length = size_ - at, .data = true}; }

 private:
  const std::unique_ptr<Store> inner_;
  const uint64_t size_;
};

// What an image in an archive may name.
class PackageOpener final : public Opener {
 public:
  explicit PackageOpener(Package package) : package_(std::move(package)) {}
  Result<std::unique_ptr<Store>> OpenReference(const Reference& reference, bool) override {
    return package_.OpenFor(reference);
  }

 private:
  Package package_;
};

std::string ManifestName(const std::string& ovf) {
  return ovf.ends_with(".ovf") ? ovf.substr(0, ovf.size() - 4) + ".mf" : std::string();
}

class Unwrapper {
 public:
  Unwrapper(const UnwrapOptions& options, const Gate& gate, std::set<FileId>& seen,
            std::vector<std::string>* warnings)
      : options_(options), gate_(gate), seen_(seen), warnings_(warnings) {}

  Result<Unwrapped> Run(std::unique_ptr<Store> store, const std::string& path) {
    image_.store = std::move(store);
    image_.path = path;
    image_.format = options_.format;
    for (int i = 0; i < kMostWrappings && TRY(TakeOff()); ++i) {
    }
    if (!options_.member.empty() && !package_found_) {
      return Fail(Code::kRefused, "{} is no OVF package, so it has no '{}'", Quoted(),
                  Printable(options_.member, PATH_MAX));
    }
    if (options_.info_only && !image_.around.empty()) TRY(SettleForHead());
    return std::move(image_);
  }

 private:
  std::string Quoted() const { return fmt::format("'{}'", image_.store->name()); }

  // Takes off what is outermost; false where there is nothing, or where it is the image's own.
  Result<bool> TakeOff() {
    if (options_.format == "raw" && !options_.inside) return false;
    const auto head = TRY(ReadHead(*image_.store));
    const Signature* signature = FindSignature(head, {}, head.size());
    if (!signature) return false;
    const auto packing = FindPacking(signature->name);
    const bool package = signature == &kOva || signature == &kOvf;
    if ((!packing && !package) || TRY(IsFormat(head)) || TRY(HasTrailer())) return false;
    if (options_.writable) {
      return Fail(Code::kReadOnly, "{} is {} {}, and what is in it can only be read", Quoted(),
                  packing ? "compressed with" : "a package,", signature->name);
    }
    if (packing) {
      TRY(Unpack(*packing));
    } else {
      TRY(signature == &kOva ? OpenOva() : OpenOvf());
    }
    return true;
  }

  // Whether the file as it is ends like an image that begins with compressed bytes of its own.
  Result<bool> HasTrailer() {
    if (!image_.around.empty()) return false;
    const Ends ends = TRY(ReadEnds(*image_.store));
    const Signature* found = FindSignature(ends.head, ends.tail, ends.size);
    return found && found->at_end;
  }

  // Whether the format that the user named knows the file as it is: a fixed VHD may begin with any
  // bytes.
  Result<bool> IsFormat(ConstBytes head) {
    if (options_.format.empty() || options_.format == "raw") return false;
    const Format* format = TRY(FindFormat(options_.format));
    if (!image_.around.empty()) return format->probe(head, {}, head.size()) > 0;
    const Ends ends = TRY(ReadEnds(*image_.store));
    return format->probe(ends.head, ends.tail, ends.size) > 0;
  }

  Result<> Unpack(Packing packing) {
    UnpackLimits limits = options_.limits;
    limits.brief = options_.info_only;
    // Two decoders have to do with the memory of one and a half.
    if (unpacked_) limits.memory = std::min(limits.memory, 72 * kMiB);
    unpacked_ = true;
    image_.store = TRY(OpenUnpacked(std::move(image_.store), packing, limits));
    image_.around.push_back({{"type", std::string(PackingName(packing))}});
    return {};
  }

  Result<> OpenOva() {
    const std::string quoted = Quoted();
    std::shared_ptr<Store> archive = std::move(image_.store);
    auto files = TRY_AS(quoted, TarFiles::Open(archive, image_.path));
    image_.store.reset();
    const std::string ovf_name = files->NameWithEnding(".ovf");
    Reference reference;
    reference.role = Reference::kData;
    reference.name = ovf_name;
    auto ovf = TRY_AS(quoted, files->Open(reference));
    std::string manifest = ManifestName(ovf_name);
    return TakeDisk("ova", std::move(files), *ovf, ovf_name, manifest).WithPrefix(quoted);
  }

  Result<> OpenOvf() {
    const std::string quoted = Quoted();
    auto ovf = std::move(image_.store);
    if (!image_.around.empty()) {
      return Fail(Code::kUnsupported, "{}: a compressed OVF description is not read", quoted);
    }
    ReferenceOpener opener(gate_, image_.path, options_.file, seen_);
    const std::string name = image_.path.substr(image_.path.rfind('/') + 1);
    auto files = std::make_unique<FolderFiles>(gate_, image_.path, opener);
    return TakeDisk("ovf", std::move(files), *ovf, name, ManifestName(name)).WithPrefix(quoted);
  }

  Result<> TakeDisk(const char* what, std::unique_ptr<PackageFiles> files, Store& ovf,
                    const std::string& ovf_name, const std::string& manifest) {
    package_found_ = true;
    auto package = TRY(
        Package::Open(std::move(files), ovf, ovf_name, manifest, !options_.info_only, warnings_));
    auto disk = TRY(package.OpenDisk(options_.member));
    Facts facts = package.Describe();
    facts.insert(facts.begin(), {{"type", std::string(what)}, {"disk", disk.name}});
    image_.around.push_back(std::move(facts));
    image_.store = std::move(disk.store);
    image_.path = package.closed() ? fmt::format("{}:{}", disk.path, disk.name) : disk.path;
    image_.capacity = disk.capacity;
    image_.closed = image_.closed || package.closed();
    if (package.closed()) {
      image_.opener = std::make_unique<PackageOpener>(std::move(package));
    } else {
      image_.manifest = package.manifest();
    }
    return {};
  }

  // Where info must not unpack up to the end, the head has to tell the format.
  Result<> SettleForHead() {
    auto ends = ReadEnds(*image_.store);
    if (ends || ends.error().code() != Code::kRefused) return {};
    if (image_.format.empty()) {
      const Format* format = ProbeHead(TRY(ReadHead(*image_.store)));
      if (!format) return std::unexpected(std::move(ends.error()));
      image_.format = format->name;
    }
    if (image_.store->Size() || image_.format == "raw") return {};
    image_.store = std::make_unique<EndlessStore>(std::move(image_.store), options_.limits.most);
    return {};
  }

  const UnwrapOptions& options_;
  const Gate& gate_;
  std::set<FileId>& seen_;
  std::vector<std::string>* const warnings_;
  Unwrapped image_;
  bool package_found_ = false, unpacked_ = false;
};

}  // namespace

MemberName SplitMember(const std::string& name) {
  struct stat status;
  if (!SchemeOf(name).empty()) {
    constexpr std::string_view kEnd = ".ova:";
    size_t end = name.rfind(kEnd);
    if (end == name.npos) return {name, ""};
    return {name.substr(0, end + kEnd.size() - 1), name.substr(end + kEnd.size())};
  }
  if (::stat(name.c_str(), &status) == 0) return {name, ""};
  for (size_t colon = name.find(':'); colon != name.npos; colon = name.find(':', colon + 1)) {
    std::string path = name.substr(0, colon);
    if (::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode)) {
      return {std::move(path), name.substr(colon + 1)};
    }
  }
  return {name, ""};
}

Result<Unwrapped> Unwrap(std::unique_ptr<Store> store, const std::string& path,
                         const UnwrapOptions& options, const Gate& gate, std::set<FileId>& seen,
                         std::vector<std::string>* warnings) {
  return Unwrapper(options, gate, seen, warnings).Run(std::move(store), path);
}

}  // namespace platter
