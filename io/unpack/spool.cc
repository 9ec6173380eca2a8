#include "io/unpack/spool.h"

#include <algorithm>

#include "io/temp_file.h"

namespace platter::internal {

namespace {
constexpr uint64_t kPage = 4096;

// The page-aligned piece at the start of `bytes`, which lies at `at`.
ConstBytes FirstPage(uint64_t at, ConstBytes bytes) {
  return bytes.first(std::min<uint64_t>(bytes.size(), kPage - at % kPage));
}
}  // namespace

Result<Spool> Spool::Open(const std::string& name) {
  Fd fd = TRY(OpenTempFile());
  auto file = TRY(FileStore::FromFd(std::move(fd), name, {.writable = true, .lock = false}));
  return Spool(std::move(file));
}

Result<> Spool::Put(uint64_t at, ConstBytes bytes) {
  while (!bytes.empty()) {
    size_t zeros = 0, data = 0;
    while (zeros < bytes.size()) {
      ConstBytes page = FirstPage(at + zeros, bytes.subspan(zeros));
      if (!IsZero(page)) break;
      zeros += page.size();
    }
    at += zeros;
    bytes = bytes.subspan(zeros);
    while (data < bytes.size()) {
      ConstBytes page = FirstPage(at + data, bytes.subspan(data));
      if (IsZero(page)) break;
      data += page.size();
    }
    if (data > 0) TRY_AS("unpacking (TMPDIR says where)", file_->Write(at, bytes.first(data)));
    at += data;
    bytes = bytes.subspan(data);
  }
  return {};
}

}  // namespace platter::internal
