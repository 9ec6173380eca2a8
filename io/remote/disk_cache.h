// DiskCache: blocks of a remote file, kept in a file of a folder of the user's, from run to run.
//
// The file is named after a hash of the URL, the content's version and its size, so that a changed
// original is another file, and so is what differs only in a part of the URL that no message shows.
// It has a header, one entry a block, and the blocks in their places; it is sparse. Each entry
// holds the block's checksum, which is compared whenever the block is read: so nothing has to be
// written in any order, and what a crash left half written is fetched again. Several programs may
// use one file at once, since all of them write the same.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/endian.h"
#include "base/result.h"
#include "io/fd.h"

namespace platter {

class DiskCache {
 public:
  static constexpr uint64_t kBlock = 256 * kKiB;  // bytes

  struct Original {
    std::string name, url, version;  // as RemoteSource has them
    uint64_t size;                   // bytes
  };
  // The folder is made if it is not there. kIo; kRefused if others may write to it.
  static Result<std::unique_ptr<DiskCache>> Open(const std::string& folder,
                                                 const Original& original);

  // Any thread. `block` is a number; the last one may be short.
  bool Load(uint64_t block, Bytes into) const;        // false: not there, or damaged
  void Save(uint64_t block, ConstBytes bytes) const;  // what fails is not in the cache

 private:
  DiskCache(Fd file, uint64_t blocks) : file_(std::move(file)), blocks_(blocks) {}
  uint64_t EntryAt(uint64_t block) const;
  uint64_t DataAt(uint64_t block) const;

  const Fd file_;
  const uint64_t blocks_;
};

}  // namespace platter
