// An OVF package: a description of virtual machines (.ovf), the disks that it names, and maybe a
// manifest of digests (.mf). As an OVA all of it is one tar archive; else the files lie beside one
// another.
//
// Which files belong to it: of an archive its members and nothing else, whatever the description or
// an image in it names; of a description in a folder what the gate lets it name.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cow/gate.h"
#include "cow/ovf.h"
#include "io/store.h"
#include "io/tar.h"

namespace platter {

// Where the files of a package are. Used by one thread.
class PackageFiles {
 public:
  virtual ~PackageFiles() = default;
  // kIo (ENOENT) if there is no such file.
  virtual Result<std::unique_ptr<Store>> Open(const Reference& reference) = 0;
  // By which the gate knows an image that was opened here.
  virtual Result<std::string> PathOf(const Reference& reference) = 0;
  // An image of the package may name files of it and no others; else what any image may.
  virtual bool closed() const = 0;
};

// The members of a tar archive.
class TarFiles final : public PackageFiles {
 public:
  // kCorrupt, kUnsupported (io/tar.h). `path`: the archive's.
  static Result<std::unique_ptr<TarFiles>> Open(std::shared_ptr<Store> archive, std::string path);

  // Of the first member with this ending; "" if there is none.
  std::string NameWithEnding(std::string_view ending) const;

  Result<std::unique_ptr<Store>> Open(const Reference& reference) override;
  Result<std::string> PathOf(const Reference& reference) override;
  bool closed() const override { return true; }

 private:
  TarFiles(std::shared_ptr<Store> archive, std::string path, std::vector<TarMember> members)
      : archive_(std::move(archive)), path_(std::move(path)), members_(std::move(members)) {}

  const std::shared_ptr<Store> archive_;
  const std::string path_;
  const std::vector<TarMember> members_;
};

// The files beside a description.
class FolderFiles final : public PackageFiles {
 public:
  // `opener` opens what the description at `path` names.
  FolderFiles(const Gate& gate, std::string path, Opener& opener)
      : gate_(gate), path_(std::move(path)), opener_(opener) {}

  Result<std::unique_ptr<Store>> Open(const Reference& reference) override {
    return opener_.OpenReference(reference, false);
  }
  Result<std::string> PathOf(const Reference& reference) override {
    return gate_.Resolve(path_, reference);
  }
  bool closed() const override { return false; }

 private:
  const Gate& gate_;
  const std::string path_;
  Opener& opener_;
};

struct PackagedDisk {
  std::unique_ptr<Store> store;
  std::string name;                  // of its file in the package
  std::string path;                  // by which the gate knows it
  std::optional<uint64_t> capacity;  // bytes, as the description says
};

// The digests of a package's files. Used by one thread.
class Manifest {
 public:
  // `verify`: Verify does something. Warnings may be null.
  Manifest(std::vector<ManifestEntry> entries, bool verify, std::vector<std::string>* warnings)
      : entries_(std::move(entries)), verify_(verify), warnings_(warnings) {}

  const std::vector<ManifestEntry>& entries() const { return entries_; }

  // Reads all of `store`, the file `name` of the package: kCorrupt if it is not what is listed. A
  // warning where it is not listed.
  Result<> Verify(Store& store, const std::string& name) const;

 private:
  const std::vector<ManifestEntry> entries_;
  const bool verify_;
  std::vector<std::string>* const warnings_;
};

class Package {
 public:
  // Of the description in `ovf`, whose file is `ovf_name`; `manifest_name` need not be there.
  // `verify`: files that are opened, and the description, are read once and their digests compared
  // with those of the manifest (kCorrupt). Warnings may be null.
  static Result<Package> Open(std::unique_ptr<PackageFiles> files, Store& ovf, std::string ovf_name,
                              const std::string& manifest_name, bool verify,
                              std::vector<std::string>* warnings);

  // The disk of which `wanted` is the file's name or the id in the description, or any other file
  // of the package by name; empty: the only disk there is. kRefused lists the disks.
  Result<PackagedDisk> OpenDisk(const std::string& wanted);

  // What an image of the package names, verified as OpenDisk does it.
  Result<std::unique_ptr<Store>> OpenFor(const Reference& reference);

  bool closed() const { return files_->closed(); }

  // For what images of the package name, where they are not opened here; null: there is none.
  const std::shared_ptr<const Manifest>& manifest() const { return manifest_; }

  // For info.
  Facts Describe() const;

 private:
  Package() = default;

  std::vector<const OvfDisk*> DisksWithFiles() const;
  Result<const OvfDisk*> Choose(const std::string& wanted) const;
  Result<> LoadManifest(const std::string& name, bool verify, std::vector<std::string>* warnings);
  Result<> Verify(Store& store, const std::string& name) const {
    return manifest_ ? manifest_->Verify(store, name) : Result<>();
  }
  Result<std::unique_ptr<Store>> OpenFile(const std::string& name);
  Result<std::unique_ptr<Store>> OpenChunks(const OvfFile& file);

  std::unique_ptr<PackageFiles> files_;
  Ovf ovf_;
  std::string ovf_name_;
  std::shared_ptr<const Manifest> manifest_;
};

}  // namespace platter
