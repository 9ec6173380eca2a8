// What a new image will be: create options checked against one another, and where its parts lie.
// Shared by create, which writes it, and measure, which only adds it up. No I/O.
#pragma once

#include <cstdint>
#include <optional>

#include "base/range.h"
#include "base/result.h"
#include "formats/format.h"
#include "formats/qcow2/qcow2_parse.h"
#include "io/codec/luks.h"
#include "io/layer.h"

namespace platter::qcow2 {

struct ImagePlan {
  Header header;  // everything except where the tables are
  Preallocation preallocation = Preallocation::kOff;
  std::optional<LuksOptions> luks;
};

// qemu-img's names.
inline constexpr OptionHelp kCreateOptions[] = {
    {"cluster_size", "allocation unit: a power of two from 512 to 2M (65536)"},
    {"compat", "version: 0.10 (or v2), 1.1 (or v3) (1.1)"},
    {"compression_type", "of compressed clusters: zlib (or deflate), zstd (zlib)"},
    {"data_file", "name of an external file for the guest's data"},
    {"data_file_raw", "the external data file stays a valid raw image: on, off (off)"},
    {"encrypt.cipher-alg", "LUKS: aes-128, aes-256 (aes-256)"},
    {"encrypt.cipher-mode", "LUKS: cbc, xts (xts)"},
    {"encrypt.format", "encryption: luks, or aes (insecure, for old programs)"},
    {"encrypt.hash-alg", "LUKS: hash of the key derivation (sha256)"},
    {"encrypt.iter-time", "LUKS: milliseconds that one unlocking shall take (2000)"},
    {"encrypt.ivgen-alg", "LUKS: plain, plain64, essiv (plain64)"},
    {"encrypt.ivgen-hash-alg", "LUKS: hash of essiv (sha256)"},
    {"encrypt.key-secret", "accepted for qemu-img's sake; the passphrase comes from --secret"},
    {"encryption", "on: the same as encrypt.format=aes"},
    {"extended_l2", "32 subclusters in each cluster: on, off (off)"},
    {"lazy_refcounts", "postpone refcount updates: on, off (off)"},
    {"preallocation", "off, metadata, falloc, full (off)"},
    {"refcount_bits", "width of a reference count: 1, 2, 4, 8, 16, 32, 64 (16)"},
};

// kUnsupported for names, values and combinations that qcow2 does not have, kOutOfRange for sizes
// that it cannot express. Does not ask for a passphrase or a data file.
Result<ImagePlan> PlanImage(const CreateOptions& options);

// The fewest refcount table clusters and refcount blocks that count `others` clusters and
// themselves.
struct RefcountClusters {
  uint64_t table = 0, blocks = 0;
};
RefcountClusters RefcountClustersFor(const Header& header, uint64_t others);

// A new image's parts in bytes, one after the other, whole clusters. Empty where there is none.
struct ImageLayout {
  Range refcount_table, refcount_blocks, luks, l1, l2, data;
  uint64_t end = 0;
};

// `luks_bytes`: of the LUKS header, 0 for none. The rest in clusters: L2 tables, and guest data in
// this file. kOutOfRange where the file would be larger than the format can count.
Result<ImageLayout> LayOut(const Header& header, uint64_t luks_bytes, uint64_t l2_tables,
                           uint64_t data);

}  // namespace platter::qcow2
