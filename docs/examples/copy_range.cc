// copy_range IMAGE OFFSET LENGTH: writes a range of an image's disk to standard output, whatever
// format the image is in and whatever it stands on.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cow/disk.h"
#include "io/engine/engine.h"

using namespace platter;

namespace {

Result<> WriteAll(int fd, ConstBytes bytes) {
  while (!bytes.empty()) {
    ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0) return FailErrno(errno, "standard output");
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return {};
}

Result<> CopyRange(const std::string& path, Range range) {
  // Files that the image names may lie beside it or in directories of PLATTER_TRUST.
  Gate gate(GatePolicy::FromEnvironment());
  std::vector<std::string> warnings;
  auto disk = TRY(Disk::Open(path, {}, gate, &warnings));
  for (const std::string& warning : warnings) fmt::print(stderr, "warning: {}\n", warning);

  if (!FitsIn(range.offset, range.length, disk->info().size)) {
    return Fail(Code::kOutOfRange, "'{}' is a disk of {} bytes", path, disk->info().size);
  }
  std::vector<std::byte> buffer(kMiB);
  while (!range.empty()) {
    Bytes piece = Bytes(buffer).first(std::min<uint64_t>(range.length, buffer.size()));
    TRY(Read(*disk, range.offset, piece));
    TRY(WriteAll(STDOUT_FILENO, piece));
    range = Range::FromTo(range.offset + piece.size(), range.end());
  }
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    fmt::print(stderr, "usage: copy_range IMAGE OFFSET LENGTH\n");
    return 2;
  }
  Range range{std::strtoull(argv[2], nullptr, 10), std::strtoull(argv[3], nullptr, 10)};
  Result<> copied = CopyRange(argv[1], range);
  if (copied) return 0;
  fmt::print(stderr, "copy_range: {}\n", copied.error().text());
  return 1;
}
