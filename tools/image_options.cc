#include "tools/image_options.h"

#include <CLI/CLI.hpp>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "base/size.h"

namespace platter {

Result<Secret> ReadSecret(const std::string& where) {
  if (where.starts_with("env:")) {
    const char* value = std::getenv(where.c_str() + 4);
    if (!value) return Fail(Code::kIo, "--secret {}: there is no such environment variable", where);
    return Secret(AsBytes(std::string_view(value)));
  }
  if (!where.starts_with("file:")) {
    return Fail(Code::kOutOfRange, "--secret '{}': give file:PATH or env:NAME", Printable(where));
  }
  std::ifstream file(where.substr(5), std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file.is_open() || file.bad()) return FailErrno(errno, "--secret {}", Printable(where));
  std::string_view passphrase = text;
  if (passphrase.ends_with('\n')) passphrase.remove_suffix(1);
  Secret secret(AsBytes(passphrase));
  explicit_bzero(text.data(), text.size());
  return secret;
}

Result<std::map<std::string, std::string>> ParseOptionList(const std::vector<std::string>& lists) {
  std::map<std::string, std::string> options;
  auto add = [&](const std::string& item) -> Result<> {
    if (item.empty()) return {};
    size_t equals = item.find('=');
    if (equals == 0) return Fail(Code::kOutOfRange, "option '{}' has no name", Printable(item));
    if (equals == item.npos) {
      options[item] = "on";
    } else {
      options[item.substr(0, equals)] = item.substr(equals + 1);
    }
    return {};
  };
  for (const std::string& list : lists) {
    std::string item;
    for (size_t i = 0; i < list.size(); ++i) {
      if (list[i] != ',') {
        item += list[i];
      } else if (i + 1 < list.size() && list[i + 1] == ',') {
        item += ',';
        ++i;
      } else {
        TRY(add(item));
        item.clear();
      }
    }
    TRY(add(item));
  }
  return options;
}

Result<bool> WantsDirect(const std::string& cache_mode) {
  for (const char* mode : {"none", "directsync"}) {
    if (cache_mode == mode) return true;
  }
  for (const char* mode : {"writeback", "writethrough", "unsafe"}) {
    if (cache_mode == mode) return false;
  }
  return Fail(Code::kOutOfRange,
              "cache mode '{}' is not one of none, directsync, writeback, "
              "writethrough, unsafe",
              Printable(cache_mode));
}

void ImageOptions::Declare(CLI::App& app) {
  app.add_option("-f,--format", format, "Format of the image; without it the first bytes decide")
      ->type_name("FMT");
  app.add_flag("-U,--force-share", force_share_,
               "Read it even though another program has it open for writing");
  app.add_option("--trust", trusted_, "Let images name files below DIR too (also: PLATTER_TRUST)")
      ->type_name("DIR")
      ->allow_extra_args(false);
  app.add_option("--search", search_,
                 "Look for parents known by their id alone (VDI) in DIR too, after the image's own "
                 "directory")
      ->type_name("DIR")
      ->allow_extra_args(false);
  app.add_flag("--allow-external", allow_external_, "Let images name files anywhere");
  app.add_flag("--no-backing", no_backing, "Do not open parents: what they hold reads as zeros");
  app.add_option("--secret", secret_from_,
                 "Passphrase of an encrypted image: file:PATH or env:NAME")
      ->type_name("WHERE");
  app.add_option("--cache,-T", cache_, "none: bypass the page cache (O_DIRECT); default writeback")
      ->type_name("MODE");
  app.add_flag("--unwrap", unwrap_,
               "-f raw means what is in a compressed file or package, not the file's own bytes");
  app.add_option("--unpack-limit", unpack_limit_,
                 "Most bytes to unpack from a compressed file; default 64G, and 200 times its size")
      ->type_name("SIZE");
  app.add_option("--remote-cache", remote_.cache_folder,
                 "Keep what was read from URLs in DIR, for the next time (also: "
                 "PLATTER_REMOTE_CACHE)")
      ->type_name("DIR")
      ->envname("PLATTER_REMOTE_CACHE");
  app.add_option("--reconnect", remote_.reconnect_seconds,
                 "For how long to look for an NBD server whose connection is lost; default 0: not")
      ->type_name("SECONDS")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--source-option", option_lists_,
                 "Options of the format, e.g. raw: offset=1M,size=2G")
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false);
}

void ImageOptions::DeclareParent(CLI::App& app) {
  app.add_option(
         "--parent", parent,
         "Open FILE as the image's parent, wherever the image says that it is; ids that the "
         "image records have to agree")
      ->type_name("FILE");
  app.add_option("--parent-format", parent_format,
                 "Format of that FILE; without it the first bytes decide")
      ->type_name("FMT");
}

Result<DiskOptions> ImageOptions::ToDiskOptions(bool writable) const {
  DiskOptions options;
  options.format = format;
  options.file.writable = writable;
  options.file.force_share = force_share_;
  options.file.direct = TRY(WantsDirect(cache_));
  if (writable && force_share_) {
    return Fail(Code::kRefused, "--force-share is for reading; this command writes");
  }
  options.inside = unwrap_;
  if (!unpack_limit_.empty()) {
    options.unpack.most = TRY_AS("--unpack-limit", ParseSize(unpack_limit_));
    options.unpack.given = true;
  }
  options.no_backing = no_backing;
  if (no_backing && !parent.empty()) {
    return Fail(Code::kOutOfRange, "--parent and --no-backing contradict one another");
  }
  if (parent.empty() && !parent_format.empty()) {
    return Fail(Code::kOutOfRange, "--parent-format needs --parent");
  }
  options.parent = parent;
  options.parent_format = parent_format;
  options.snapshot = snapshot;
  options.info_only = info_only;
  options.options = TRY(ParseOptionList(option_lists_));
  if (!secret_from_.empty()) {
    if (!secret_) secret_ = std::make_shared<Secret>(TRY(ReadSecret(secret_from_)));
    options.secret = secret_.get();
  }
  return options;
}

Gate ImageOptions::MakeGate() const {
  GatePolicy policy = GatePolicy::FromEnvironment();
  policy.allow_external = allow_external_;
  policy.trusted.insert(policy.trusted.end(), trusted_.begin(), trusted_.end());
  policy.search = search_;
  policy.urls = MakeUrlOpeners(remote_);
  return Gate(std::move(policy));
}

Result<std::unique_ptr<Disk>> ImageOptions::Open(const std::string& path, bool writable,
                                                 Console& console) const {
  DiskOptions options = TRY(ToDiskOptions(writable));
  std::vector<std::string> warnings;
  auto disk = Disk::Open(path, options, MakeGate(), &warnings);
  if (!quiet) {
    for (const std::string& warning : warnings) console.Warn(warning);
  }
  return disk;
}

}  // namespace platter
