// DownloadedStore: a file of a server that hands it out only from front to back.
//
// A thread downloads it into a file without a name (io/temp_file.h), and reads wait until it has
// come as far as they need; so what is read from front to back is not waited for twice. The size is
// known at once where the server says it, else at the end.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "base/sync.h"
#include "io/file_store.h"
#include "io/read_only_store.h"

namespace platter {

// Where it comes from. Download is called once, by one thread; Stop by another.
class Download {
 public:
  virtual ~Download() = default;
  virtual const std::string& name() const = 0;
  virtual std::optional<uint64_t> size() const = 0;  // bytes, where the server said it
  // Hands all of the file to `sink`, in order. Success means that it was whole. An error of the
  // sink's ends it.
  virtual Result<> Run(const std::function<Result<>(ConstBytes)>& sink) = 0;
  virtual void Stop() = 0;  // makes Run fail soon
};

class DownloadedStore final : public ReadOnlyStore {
 public:
  static constexpr uint64_t kMost = 64 * kGiB;  // bytes: longer files are refused

  // kIo (no temporary file), kRefused (too long).
  static Result<std::unique_ptr<Store>> Open(std::unique_ptr<Download> download);
  ~DownloadedStore() override;

  Caps caps() const override { return {}; }
  const std::string& name() const override { return download_->name(); }
  // Waits for the end where the server did not say the size.
  Result<uint64_t> Size() const override;
  using Store::Read;
  Result<> Read(uint64_t at, std::span<const iovec> into) override;
  Result<Run> FindRun(uint64_t at) override;

 private:
  DownloadedStore(std::unique_ptr<Download> download, std::unique_ptr<FileStore> file);
  void Fill();
  Result<> WaitFor(uint64_t end) const;

  const std::unique_ptr<Download> download_;
  const std::unique_ptr<FileStore> file_;

  mutable Mutex mutex_;  // guards what follows; a leaf
  mutable CondVar changed_;
  uint64_t have_ = 0;  // bytes that are in the file
  bool done_ = false;  // no more come
  std::optional<Error> error_;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace platter
