#include "io/remote/downloaded_store.h"

#include <mutex>
#include <utility>

#include "io/iov.h"
#include "io/temp_file.h"

namespace platter {

Result<std::unique_ptr<Store>> DownloadedStore::Open(std::unique_ptr<Download> download) {
  if (download->size().value_or(0) > kMost) {
    return Fail(Code::kRefused,
                "'{}' has {} bytes, and the server can send it only as a whole: download it first",
                download->name(), *download->size());
  }
  Fd fd = TRY(OpenTempFile());
  auto file =
      TRY(FileStore::FromFd(std::move(fd), download->name(), {.writable = true, .lock = false}));
  return std::unique_ptr<Store>(new DownloadedStore(std::move(download), std::move(file)));
}

DownloadedStore::DownloadedStore(std::unique_ptr<Download> download,
                                 std::unique_ptr<FileStore> file)
    : download_(std::move(download)), file_(std::move(file)), thread_([this] { Fill(); }) {}

DownloadedStore::~DownloadedStore() { download_->Stop(); }

void DownloadedStore::Fill() {
  uint64_t at = 0;
  Result<> result = download_->Run([&](ConstBytes bytes) -> Result<> {
    if (bytes.size() > kMost - at) {
      return Fail(Code::kRefused, "it is longer than {} bytes: download it first", kMost);
    }
    TRY_AS("keeping it meanwhile (TMPDIR says where)", file_->Write(at, bytes));
    at += bytes.size();
    std::lock_guard lock(mutex_);
    have_ = at;
    changed_.NotifyAll();
    return {};
  });
  if (result && download_->size() && *download_->size() != at) {
    result = Fail(Code::kIo, "{} bytes came instead of {}", at, *download_->size());
  }
  std::lock_guard lock(mutex_);
  done_ = true;
  if (!result) error_ = std::move(result.error()).WithPrefix(fmt::format("'{}'", name()));
  changed_.NotifyAll();
}

// Until the bytes before `end` are there, or nothing more comes.
Result<> DownloadedStore::WaitFor(uint64_t end) const {
  std::unique_lock lock(mutex_);
  changed_.Wait(lock, [&] { return done_ || have_ >= end; });
  if (have_ < end && error_) return std::unexpected(error_->Clone());
  return {};
}

Result<uint64_t> DownloadedStore::Size() const {
  if (download_->size()) return *download_->size();
  TRY(WaitFor(UINT64_MAX));
  std::lock_guard lock(mutex_);
  return have_;
}

Result<> DownloadedStore::Read(uint64_t at, std::span<const iovec> into) {
  const uint64_t length = IovLength(into);
  if (auto end = CheckedAdd(at, length)) TRY(WaitFor(*end));
  return file_->Read(at, into);
}

Result<Store::Run> DownloadedStore::FindRun(uint64_t at) {
  const uint64_t size = TRY(Size());
  if (at < size) return Run{.length = size - at, .data = true};
  return Fail(Code::kOutOfRange, "'{}': {:#x} is past the end of the file (size {:#x})", name(), at,
              size);
}

}  // namespace platter
