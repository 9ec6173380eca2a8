// The format's entry in the registry.
#include "base/bytes.h"
#include "base/endian.h"
#include "formats/qcow2/qcow2.h"
#include "formats/qcow2/qcow2_check.h"
#include "formats/qcow2/qcow2_create.h"
#include "formats/qcow2/qcow2_disk.h"
#include "formats/qcow2/qcow2_layer.h"

namespace platter {
namespace {

constexpr OptionHelp kCreateOptions[] = {
    {"compat", "version: 1.1 or v3 (default), 0.10 or v2"},
    {"cluster_size", "bytes, 512 to 2M, a power of two; default 64k"},
    {"refcount_bits", "1 to 64, a power of two; default 16"},
    {"lazy_refcounts", "on or off: other programs may postpone refcount updates"},
    {"extended_l2", "on or off: 32 subclusters a cluster"},
    {"compression_type", "zlib (deflate) or zstd, of compressed clusters"},
    {"preallocation", "off, metadata, falloc or full"},
    {"data_file", "name of an external file for the guest's data"},
    {"data_file_raw", "on or off: the data file is a raw image of its own"},
    {"backing_file", "name of the parent"},
    {"backing_fmt", "format of the parent"},
    {"encrypt.format", "luks or aes (legacy)"},
    {"encrypt.cipher-alg", "of luks: aes-256 (default), aes-192, aes-128"},
    {"encrypt.cipher-mode", "of luks: xts (default) or cbc"},
    {"encrypt.ivgen-alg", "of luks: plain64 (default), plain or essiv"},
    {"encrypt.hash-alg", "of luks: sha256 (default), sha1, sha512, ripemd160"},
    {"encrypt.iter-time", "of luks: milliseconds that a guess at the passphrase shall cost"},
};

int ProbeQcow2(ConstBytes head, ConstBytes, uint64_t) {
  auto magic = LoadAt<be32>(head, 0);
  auto version = LoadAt<be32>(head, 4);
  // Version 1 is another format, qcow.
  return magic && version && *magic == qcow2::kMagic && *version >= 2 ? 100 : 0;
}

}  // namespace

constinit const Format kQcow2Format = {
    .name = "qcow2",
    .create_options = kCreateOptions,
    .probe = ProbeQcow2,
    .open = qcow2::OpenQcow2,
    .create = qcow2::CreateQcow2,
    .check = qcow2::CheckQcow2,
    .measure = qcow2::MeasureQcow2,
};

}  // namespace platter
