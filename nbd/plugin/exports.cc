#include "nbd/plugin/exports.h"

#include <cerrno>
#include <climits>
#include <mutex>
#include <set>
#include <utility>

#include "base/bytes.h"

namespace platter::nbd {

namespace {

std::string NameOf(const std::string& file) { return file.substr(file.rfind('/') + 1); }

}  // namespace

DiskOptions Exports::OptionsFor(const Target& target, bool writable) const {
  DiskOptions options;
  options.format = config_.format;
  options.snapshot = target.snapshot;
  options.file.writable = writable;
  options.secret = config_.secret ? &*config_.secret : nullptr;
  return options;
}

Result<> Exports::Check(std::vector<std::string>* warnings) const {
  if (config_.files.empty()) return Fail(Code::kOutOfRange, "file=IMAGE is missing");
  std::set<std::string> names;
  for (const std::string& file : config_.files) {
    if (!names.insert(NameOf(file)).second) {
      return Fail(Code::kOutOfRange, "two images have the name '{}'", Printable(NameOf(file)));
    }
    TRY(ReadChainInfo(file, OptionsFor({file, ""}, false), gate_, false, warnings));
  }
  return {};
}

Result<std::vector<NamedExport>> Exports::List() const {
  std::vector<NamedExport> all;
  for (const std::string& file : config_.files) {
    auto chain = TRY(ReadChainInfo(file, OptionsFor({file, ""}, false), gate_, false, nullptr));
    const Info& info = chain[0].info;
    all.push_back({NameOf(file), fmt::format("{}, {} bytes", info.format, info.size)});
    if (!config_.snapshot.empty()) continue;
    for (const SnapshotInfo& snapshot : info.snapshots) {
      all.push_back({fmt::format("{}@{}", NameOf(file), snapshot.name), "snapshot"});
    }
  }
  return all;
}

// The longest name that fits: a file's own name may hold an "@".
Result<Exports::Target> Exports::Find(const std::string& name) const {
  if (name.empty()) return Target{config_.files[0], config_.snapshot};
  for (const std::string& file : config_.files) {
    if (name == NameOf(file)) return Target{file, config_.snapshot};
  }
  for (const std::string& file : config_.files) {
    const std::string prefix = NameOf(file) + "@";
    if (config_.snapshot.empty() && name.starts_with(prefix)) {
      return Target{file, name.substr(prefix.size())};
    }
  }
  return Fail(Code::kRefused, "there is no export '{}'", Printable(name, NAME_MAX));
}

// For writing, if the image can be written.
Result<std::shared_ptr<Disk>> Exports::OpenDisk(const Target& target, bool writable) const {
  if (writable && target.snapshot.empty()) {
    auto disk = Disk::Open(target.file, OptionsFor(target, true), gate_, nullptr);
    if (disk) return std::shared_ptr<Disk>(std::move(*disk));
    const Error& error = disk.error();
    const int errno_value = error.errno_value();
    const bool read_only = error.code() == Code::kReadOnly || errno_value == EACCES ||
                           errno_value == EPERM || error.code() == Code::kUnsupported;
    if (!read_only) return std::unexpected(std::move(disk.error()));
  }
  return std::shared_ptr<Disk>(
      TRY(Disk::Open(target.file, OptionsFor(target, false), gate_, nullptr)));
}

Result<std::shared_ptr<Disk>> Exports::Open(const std::string& name, bool writable) {
  const Target target = TRY(Find(name));
  const std::string key = fmt::format("{}@{}", target.file, target.snapshot);
  std::lock_guard lock(mutex_);
  if (auto open = open_[key].lock()) return open;
  auto disk = TRY(OpenDisk(target, writable));
  open_[key] = disk;
  return disk;
}

}  // namespace platter::nbd
