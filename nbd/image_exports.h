// ImageExports: disk images as exports: each under its name ("a"), its partitions ("a/p1"), and the
// snapshots inside it ("a@monday"), which are opened when a client asks for one.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/sync.h"
#include "cow/disk.h"
#include "nbd/export.h"

namespace platter::nbd {

struct ServedImage {
  std::string name;
  std::shared_ptr<Disk> disk;
  bool writable = false;
  bool rotational = false;
  // Opens the disk as a snapshot, by id or name, for reading. Empty: snapshots are not served. Any
  // thread, one at a time.
  std::function<Result<std::unique_ptr<Disk>>(const std::string& snapshot)> open_snapshot;
};

class ImageExports final : public Exports {
 public:
  // The first image is the default export as well. kRefused if a name is taken, or no name (longer
  // than 4096 bytes, or empty); errors of reading the partition table. Before the server runs.
  Result<> Add(ServedImage image);

  Result<std::shared_ptr<Export>> Find(std::string_view name) override;
  void ForEach(const std::function<void(const std::string&, const std::string&)>& each) override;

  // Every writable disk: what was written before is durable afterwards. Goes on after an error, and
  // returns the first. Any thread.
  Result<> Flush();

  // Exports that are there now: all but snapshots that nobody has open.
  std::vector<std::shared_ptr<Export>> Open();

 private:
  struct Entry {
    std::string name, description;
    std::shared_ptr<Export> ready;  // null: a snapshot
    size_t image = 0;               // of images_
    std::string snapshot;
    std::weak_ptr<Export> opened;  // of a snapshot
  };

  Result<> AddEntry(Entry entry);
  Result<std::shared_ptr<Export>> OpenSnapshot(Entry& entry);

  std::vector<ServedImage> images_;
  Mutex mutex_;  // guards entries_[].opened, and opening; a leaf but for what opening takes
  std::vector<Entry> entries_;
};

}  // namespace platter::nbd
