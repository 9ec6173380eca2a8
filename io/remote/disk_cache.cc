#include "io/remote/disk_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "io/codec/crc32c.h"
#include "io/codec/hash.h"

namespace platter {

namespace {

constexpr uint64_t kHeaderSize = 4096;
constexpr uint32_t kPresent = 0x626c6f63;  // so that a hole is no entry
constexpr std::string_view kMagic = "platter remote cache 1\n";

struct Entry {
  le32 present;
  le32 crc32c;  // of the block
};
static_assert(sizeof(Entry) == 8);

bool ReadAll(int fd, uint64_t at, Bytes into) {
  while (!into.empty()) {
    ssize_t count = pread(fd, into.data(), into.size(), static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    into = into.subspan(static_cast<size_t>(count));
    at += static_cast<uint64_t>(count);
  }
  return true;
}

bool WriteAll(int fd, uint64_t at, ConstBytes from) {
  while (!from.empty()) {
    ssize_t count = pwrite(fd, from.data(), from.size(), static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    from = from.subspan(static_cast<size_t>(count));
    at += static_cast<uint64_t>(count);
  }
  return true;
}

// Whoever can write there decides what we read.
Result<> CheckOwner(const std::string& folder) {
  struct stat status;
  if (stat(folder.c_str(), &status) != 0) return FailErrno(errno, "'{}'", Printable(folder));
  if (status.st_uid != geteuid() || (status.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return Fail(Code::kRefused, "'{}' has to be a folder that only you can write to",
                Printable(folder));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<DiskCache>> DiskCache::Open(const std::string& folder,
                                                   const Original& original) {
  constexpr std::string_view kWhat = "cache of remote files";
  if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
    return FailErrno(errno, "{}: '{}'", kWhat, Printable(folder));
  }
  TRY_AS(kWhat, CheckOwner(folder));
  std::string header = fmt::format("{}{}\n{}\n{}\n", kMagic, original.name,
                                   Printable(original.version), original.size);
  const std::string path = fmt::format(
      "{}/{}", folder, Hex(Sha256::Of(AsBytes(std::string_view(header + original.url)))));
  header.resize(kHeaderSize);
  Fd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) return FailErrno(errno, "{}: '{}'", kWhat, Printable(path, 4096));
  // For a person who looks what it is; the name says all that we need.
  if (!WriteAll(file.get(), 0, AsBytes(std::string_view(header)))) {
    return FailErrno(errno, "{}: '{}'", kWhat, Printable(path, 4096));
  }
  return std::unique_ptr<DiskCache>(
      new DiskCache(std::move(file), DivideUp(original.size, kBlock)));
}

uint64_t DiskCache::EntryAt(uint64_t block) const { return kHeaderSize + block * sizeof(Entry); }

uint64_t DiskCache::DataAt(uint64_t block) const {
  return RoundUp(EntryAt(blocks_), kHeaderSize) + block * kBlock;
}

bool DiskCache::Load(uint64_t block, Bytes into) const {
  Entry entry;
  if (!ReadAll(file_.get(), EntryAt(block), std::as_writable_bytes(std::span(&entry, 1)))) {
    return false;
  }
  if (entry.present != kPresent || !ReadAll(file_.get(), DataAt(block), into)) return false;
  return Crc32c(into) == entry.crc32c;
}

void DiskCache::Save(uint64_t block, ConstBytes bytes) const {
  if (!WriteAll(file_.get(), DataAt(block), bytes)) return;
  Entry entry;
  entry.present = kPresent;
  entry.crc32c = Crc32c(bytes);
  (void)WriteAll(file_.get(), EntryAt(block), AsBytes(entry));
}

}  // namespace platter
