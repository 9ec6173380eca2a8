// ImageExports: disk images as exports: each under its name ("a"), its partitions ("a/p1"), and the
// snapshots inside it ("a@monday"), which are opened when a client asks for one.
//
// All exports of an image can be compared with its snapshots: the context
// "platter:snapshot-diff:monday" says which bytes may have changed since. A writable image (not its
// partitions) can be resized, though not so that a partition loses its end.
#pragma once

#include <functional>
#include <map>
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
  struct Image {
    ServedImage served;
    std::vector<std::string> snapshots;                     // what clients call them
    std::map<std::string, std::shared_ptr<Disk>> compared;  // snapshots by id, once they were
  };
  struct Part {
    std::string name, description;
    Range window;
    bool writable;
  };

  Result<> AddEntry(Entry entry);
  Result<> AddPartitions(size_t index);
  Result<> AddSnapshots(size_t index);
  std::shared_ptr<Export> MakeExport(size_t index, std::shared_ptr<Disk> disk, Part part);
  void AddDiffContexts(size_t index, const std::shared_ptr<Disk>& disk, Export& to);
  Result<std::shared_ptr<Disk>> StateForComparing(size_t index, const std::string& snapshot);
  Result<> AllowSize(size_t index, uint64_t size) const;
  Result<std::shared_ptr<Export>> OpenSnapshot(Entry& entry);

  Mutex mutex_;  // guards entries_[].opened, images_[].compared; a leaf but for what opening takes
  std::vector<Image> images_;
  std::vector<Entry> entries_;
};

}  // namespace platter::nbd
