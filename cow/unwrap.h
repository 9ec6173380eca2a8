// What stands around an image: compression (gzip, xz, zstd, bzip2) and packages (OVA, OVF).
//
// A compressed file is unpacked as far as it is read (io/unpack/unpacked_store.h). Of a package one
// disk is taken (cow/package.h). What is inside is looked at again: an OVA may be compressed, and
// so may a disk in it; more than kMostWrappings around an image are refused. All of it is for
// reading.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cow/gate.h"
#include "cow/package.h"
#include "io/info.h"
#include "io/store.h"
#include "io/unpack/unpacked_store.h"

namespace platter {

constexpr int kMostWrappings = 2;

struct UnwrapOptions {
  std::string format;  // of the image; empty: not said
  // `format` is that of what is inside, also if it is raw. Without, raw means the file's own bytes,
  // as they are.
  bool inside = false;
  std::string member;  // the disk of the package that is wanted; empty: the only one
  bool writable = false;
  bool info_only = false;  // manifests are not verified; little is unpacked
  UnpackLimits limits;
  FileOptions file;  // how files beside an OVF are opened
};

// An image that has been taken out of what was around it, or never was in anything.
struct Unwrapped {
  std::unique_ptr<Store> store;
  std::string path;                // by which the gate knows it
  std::string format;              // as in the options, or found; empty: to be probed
  std::unique_ptr<Opener> opener;  // of what it names; null: the gate's
  // Of what it names, where the gate opens that; null: there is none.
  std::shared_ptr<const Manifest> manifest;
  bool closed = false;               // it may name nothing outside of its archive
  std::optional<uint64_t> capacity;  // bytes the guest sees, as an OVF says
  std::vector<Facts> around;         // what was around it, from the outside in, each with a "type"
};

// "a.ova:disk2.vmdk" as "a.ova" and "disk2.vmdk", where no file has the whole as its name but one
// has the part before a colon; in a URL, behind the last ".ova:". Else `name` and "".
struct MemberName {
  std::string path, member;
};
MemberName SplitMember(const std::string& name);

// Takes the image in `store`, the file at `path`, out of what is around it. `seen`: files of the
// chain that is being opened; those opened here are added. Warnings may be null.
Result<Unwrapped> Unwrap(std::unique_ptr<Store> store, const std::string& path,
                         const UnwrapOptions& options, const Gate& gate, std::set<FileId>& seen,
                         std::vector<std::string>* warnings);

}  // namespace platter
