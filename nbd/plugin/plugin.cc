// nbdkit-platter-plugin: every format that Platter reads, for nbdkit and its filters.
//
//   nbdkit ./nbdkit-platter-plugin.so disk.vmdk
//   nbdkit -r ./nbdkit-platter-plugin.so file=a.qcow2 file=b.vhdx trust=/srv/base
//
// nbdkit makes and owns the threads, and calls from many at once; what is here only passes calls on
// to the engine. A handle is one connection's share of a disk.
//
// Source: nbdkit-plugin(3) of nbdkit 1.32, and the header that comes with it.
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "formats/format.h"
#include "io/engine/engine.h"
#include "io/remote/curl_store.h"
#include "io/remote/sftp_store.h"
#include "nbd/client/client_store.h"
#include "nbd/plugin/exports.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

namespace platter::nbd {

namespace {

// While nbdkit reads the command line, and then for good.
ExportConfig& Config() {
  static ExportConfig config;
  return config;
}
std::unique_ptr<Exports>& AllExports() {
  static std::unique_ptr<Exports> exports;
  return exports;
}

struct Handle {
  std::shared_ptr<Disk> disk;
  bool writable;
};

Disk& DiskOf(void* handle) { return *static_cast<Handle*>(handle)->disk; }

// What errno the client gets.
int ErrnoOf(const Error& error) {
  if (error.errno_value() != 0) return error.errno_value();
  switch (error.code()) {
    case Code::kIo:
    case Code::kCorrupt: return EIO;
    case Code::kUnsupported: return ENOTSUP;
    case Code::kOutOfRange: return EINVAL;
    case Code::kReadOnly: return EROFS;
    case Code::kNoSpace: return ENOSPC;
    case Code::kRefused: return EPERM;
  }
  return EIO;
}

int Report(const Error& error) {
  nbdkit_error("%s", error.text().c_str());
  nbdkit_set_error(ErrnoOf(error));
  return -1;
}

int Report(const Result<>& result) { return result ? 0 : Report(result.error()); }

// A path that is right after nbdkit went into the background; a URL as it is.
std::optional<std::string> AbsoluteName(const char* value) {
  if (std::string_view(value).find("://") != std::string_view::npos) return value;
  char* path = nbdkit_absolute_path(value);
  if (!path) return std::nullopt;
  std::string copy = path;
  std::free(path);
  return copy;
}

int AddName(std::vector<std::string>& list, const char* value) {
  auto name = AbsoluteName(value);
  if (!name) return -1;
  list.push_back(std::move(*name));
  return 0;
}

int SetSecret(const char* value) {
  char* password = nullptr;
  if (nbdkit_read_password(value, &password) != 0) return -1;
  Config().secret.emplace(AsBytes(std::string_view(password)));
  std::string_view text = password;
  explicit_bzero(password, text.size());
  std::free(password);
  return 0;
}

int Configure(const char* key_text, const char* value) {
  const std::string_view key = key_text;
  ExportConfig& config = Config();
  if (key == "file") return AddName(config.files, value);
  if (key == "trust") return AddName(config.policy.trusted, value);
  if (key == "search") return AddName(config.policy.search, value);
  if (key == "secret") return SetSecret(value);
  if (key == "allow-external") {
    int yes = nbdkit_parse_bool(value);
    config.policy.allow_external = yes == 1;
    return yes < 0 ? -1 : 0;
  }
  if (key == "format" || key == "snapshot") {
    (key == "format" ? config.format : config.snapshot) = value;
    return 0;
  }
  nbdkit_error("unknown parameter '%s'", key_text);
  return -1;
}

int FinishConfig() {
  ExportConfig config = std::move(Config());
  GatePolicy environment = GatePolicy::FromEnvironment();
  auto& trusted = config.policy.trusted;
  trusted.insert(trusted.end(), environment.trusted.begin(), environment.trusted.end());
  config.policy.urls = {std::make_shared<CurlOpener>(CurlOptions{}),
                        std::make_shared<SftpOpener>(SftpOptions{}),
                        std::make_shared<ClientOpener>(ClientOptions{})};
  AllExports() = std::make_unique<Exports>(std::move(config));
  std::vector<std::string> warnings;
  const int result = Report(AllExports()->Check(&warnings));
  for (const std::string& warning : warnings) nbdkit_debug("%s", warning.c_str());
  return result;
}

int ListExports(int, int, nbdkit_exports* list) {
  auto all = AllExports()->List();
  if (!all) return Report(all.error());
  for (const NamedExport& one : *all) {
    if (nbdkit_add_export(list, one.name.c_str(), one.description.c_str()) != 0) return -1;
  }
  return 0;
}

const char* DefaultExport(int, int) {
  auto all = AllExports()->List();
  if (!all || all->empty()) return "";
  return nbdkit_strdup_intern(all->front().name.c_str());
}

void* OpenHandle(int readonly) {
  const char* name = nbdkit_export_name();
  if (!name) return nullptr;
  auto disk = AllExports()->Open(name, readonly == 0);
  if (!disk) {
    Report(disk.error());
    return nullptr;
  }
  const bool writable = readonly == 0 && (*disk)->info().writable;
  return new Handle{std::move(*disk), writable};
}

void CloseHandle(void* handle) {
  std::unique_ptr<Handle> mine(static_cast<Handle*>(handle));
  if (!mine->writable) return;
  if (auto flushed = mine->disk->Flush(); !flushed) Report(flushed.error());
}

int64_t GetSize(void* handle) { return static_cast<int64_t>(DiskOf(handle).info().size); }

int CanWrite(void* handle) { return static_cast<Handle*>(handle)->writable; }
int Yes(void*) { return 1; }
int No(void*) { return 0; }
int EmulateFua(void*) { return NBDKIT_FUA_EMULATE; }
int EmulateCache(void*) { return NBDKIT_CACHE_EMULATE; }

int BlockSize(void* handle, uint32_t* minimum, uint32_t* preferred, uint32_t* maximum) {
  const uint32_t unit = DiskOf(handle).info().unit;
  *minimum = 1;
  *preferred = std::has_single_bit(unit) ? std::clamp(unit, 4096u, 2u << 20) : 64u << 10;
  *maximum = UINT32_MAX;
  return 0;
}

const char* Describe(void* handle) {
  return nbdkit_strdup_intern(DiskOf(handle).info().format.c_str());
}

int ReadBytes(void* handle, void* into, uint32_t count, uint64_t offset, uint32_t) {
  return Report(Read(DiskOf(handle), offset, Bytes(static_cast<std::byte*>(into), count)));
}

int WriteBytes(void* handle, const void* from, uint32_t count, uint64_t offset, uint32_t) {
  ConstBytes bytes(static_cast<const std::byte*>(from), count);
  return Report(Write(DiskOf(handle), offset, bytes));
}

int FlushDisk(void* handle, uint32_t) { return Report(DiskOf(handle).Flush()); }

int Trim(void* handle, uint32_t count, uint64_t offset, uint32_t) {
  return Report(Discard(DiskOf(handle), {offset, count}));
}

int WriteZeros(void* handle, uint32_t count, uint64_t offset, uint32_t flags) {
  const bool may_unmap = (flags & NBDKIT_FLAG_MAY_TRIM) != 0;
  return Report(Zero(DiskOf(handle), {offset, count}, may_unmap));
}

uint32_t TypeOf(const Extent& extent) {
  switch (extent.kind) {
    case Kind::kData: return 0;
    case Kind::kZero: return NBDKIT_EXTENT_ZERO;
    case Kind::kHole:
    case Kind::kParent: return NBDKIT_EXTENT_ZERO | NBDKIT_EXTENT_HOLE;
  }
  return 0;
}

int Extents(void* handle, uint32_t count, uint64_t offset, uint32_t flags,
            nbdkit_extents* extents) {
  Disk& disk = DiskOf(handle);
  Extent found[64];
  Range rest{offset, count};
  Pin pin = disk.Hold();
  while (!rest.empty()) {
    auto mapped = disk.Map(rest, found);
    if (!mapped) return Report(mapped.error());
    for (size_t i = 0; i < *mapped; ++i) {
      const Extent& extent = found[i];
      if (nbdkit_add_extent(extents, extent.guest.offset, extent.guest.length, TypeOf(extent)) != 0)
        return -1;
      if (flags & NBDKIT_FLAG_REQ_ONE) return 0;
    }
    rest = Range::FromTo(found[*mapped - 1].guest.end(), rest.end());
  }
  return 0;
}

void Unload() { AllExports().reset(); }

void DumpPlugin() {
  std::string names;
  for (const Format* format : AllFormats()) names += fmt::format(" {}", format->name);
  fmt::print("platter_formats={}\n", names.substr(1));
}

constexpr const char kHelp[] =
    "[file=]IMAGE    (required) the image, or several; also a URL\n"
    "format=FMT      its format; without it the first bytes decide\n"
    "snapshot=NAME   an internal snapshot instead of the disk\n"
    "trust=DIR       let images name files below DIR, too\n"
    "search=DIR      look there for parents that are known by their id alone\n"
    "allow-external=BOOL  let images name files anywhere\n"
    "secret=PASSWORD passphrase of an encrypted image; +FILE reads it from a file";

nbdkit_plugin MakePlugin() {
  nbdkit_plugin p{};
  p.name = "platter";
  p.longname = "Platter disk images";
  p.description = "Disk images of every format that Platter knows, for reading and writing";
  p.unload = Unload;
  p.config = Configure;
  p.config_complete = FinishConfig;
  p.config_help = kHelp;
  p.magic_config_key = "file";
  p.dump_plugin = DumpPlugin;
  p.list_exports = ListExports;
  p.default_export = DefaultExport;
  p.export_description = Describe;
  p.open = OpenHandle;
  p.close = CloseHandle;
  p.get_size = GetSize;
  p.block_size = BlockSize;
  p.can_write = CanWrite;
  p.can_flush = Yes;
  p.can_trim = Yes;
  p.can_zero = Yes;
  p.can_fast_zero = No;
  p.can_extents = Yes;
  p.can_fua = EmulateFua;
  p.can_cache = EmulateCache;
  p.can_multi_conn = Yes;
  p.is_rotational = No;
  p.pread = ReadBytes;
  p.pwrite = WriteBytes;
  p.flush = FlushDisk;
  p.trim = Trim;
  p.zero = WriteZeros;
  p.extents = Extents;
  return p;
}

nbdkit_plugin plugin = MakePlugin();

}  // namespace

}  // namespace platter::nbd

// What the macro refers to by its name alone.
using platter::nbd::plugin;
NBDKIT_REGISTER_PLUGIN(plugin)
