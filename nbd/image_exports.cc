#include "nbd/image_exports.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/bytes.h"
#include "base/size.h"
#include "cow/partitions.h"

namespace platter::nbd {
namespace {

std::shared_ptr<Export> MakeExport(const std::string& name, std::string description,
                                   std::shared_ptr<Disk> disk, Range window,
                                   const ServedImage& image, bool writable) {
  auto made = std::make_shared<Export>();
  made->name = name;
  made->description = std::move(description);
  made->layer = std::move(disk);
  made->window = window;
  made->writable = writable;
  made->rotational = image.rotational;
  made->contexts = {{MetaContext::kAllocation, "base:allocation"},
                    {MetaContext::kDepth, "qemu:allocation-depth"}};
  if (!made->layer->bitmapper()) return made;
  for (const BitmapInfo& bitmap : made->layer->info().bitmaps) {
    // What an interrupted program left says nothing.
    if (bitmap.in_use) continue;
    made->contexts.push_back(
        {MetaContext::kBitmap, "qemu:dirty-bitmap:" + bitmap.name, bitmap.name});
  }
  return made;
}

std::string DescribePartition(const Partition& partition) {
  std::string text = fmt::format("partition {}, {}, type {}", partition.number,
                                 HumanSize(partition.range.length), partition.type);
  if (!partition.name.empty()) text += ", '" + Printable(partition.name) + "'";
  return text;
}

}  // namespace

Result<> ImageExports::AddEntry(Entry entry) {
  if (entry.name.empty() || entry.name.size() > kMostString ||
      entry.name.find('\0') != std::string::npos) {
    return Fail(Code::kRefused, "export '{}': a name has 1 to {} bytes and none of them is NUL",
                Printable(entry.name), kMostString);
  }
  if (std::ranges::find(entries_, entry.name, &Entry::name) != entries_.end()) {
    return Fail(Code::kRefused, "export '{}': the name is taken; give another with --export-name",
                Printable(entry.name));
  }
  entries_.push_back(std::move(entry));
  return {};
}

Result<> ImageExports::Add(ServedImage image) {
  const Info& info = image.disk->info();
  const size_t index = images_.size();
  std::string description = fmt::format("{}, {}", info.format, HumanSize(info.size));
  auto whole =
      MakeExport(image.name, description, image.disk, {0, info.size}, image, image.writable);
  TRY(AddEntry({image.name, description, whole, index, "", {}}));
  for (const Partition& partition : TRY(ReadPartitions(*image.disk))) {
    const std::string name = fmt::format("{}/p{}", image.name, partition.number);
    description = DescribePartition(partition);
    auto part = MakeExport(name, description, image.disk, partition.range, image, image.writable);
    TRY(AddEntry({name, description, part, index, "", {}}));
  }
  if (image.open_snapshot) {
    for (const SnapshotInfo& snapshot : info.snapshots) {
      // Names need not be unique; ids are.
      const bool unique =
          !snapshot.name.empty() &&
          std::ranges::count(info.snapshots, snapshot.name, &SnapshotInfo::name) == 1;
      TRY(AddEntry({image.name + "@" + (unique ? snapshot.name : snapshot.id),
                    fmt::format("snapshot '{}', {}", Printable(snapshot.name),
                                HumanSize(snapshot.disk_size)),
                    nullptr,
                    index,
                    snapshot.id,
                    {}}));
    }
  }
  images_.push_back(std::move(image));
  return {};
}

Result<std::shared_ptr<Export>> ImageExports::Find(std::string_view name) {
  auto found = name.empty() ? entries_.begin() : std::ranges::find(entries_, name, &Entry::name);
  if (found == entries_.end()) {
    return Fail(Code::kOutOfRange, "there is no export '{}'", Printable(name));
  }
  if (found->ready) return found->ready;
  return OpenSnapshot(*found);
}

Result<std::shared_ptr<Export>> ImageExports::OpenSnapshot(Entry& entry) {
  std::scoped_lock lock(mutex_);
  if (auto opened = entry.opened.lock()) return opened;
  const ServedImage& image = images_[entry.image];
  std::shared_ptr<Disk> disk =
      TRY_AS("export '" + Printable(entry.name) + "'", image.open_snapshot(entry.snapshot));
  const uint64_t size = disk->info().size;
  auto opened = MakeExport(entry.name, entry.description, std::move(disk), {0, size}, image, false);
  entry.opened = opened;
  return opened;
}

void ImageExports::ForEach(
    const std::function<void(const std::string&, const std::string&)>& each) {
  for (const Entry& entry : entries_) each(entry.name, entry.description);
}

Result<> ImageExports::Flush() {
  Result<> first;
  for (const ServedImage& image : images_) {
    if (!image.writable) continue;
    Result<> flushed = image.disk->Flush().WithPrefix("'" + Printable(image.name) + "'");
    if (!flushed && first) first = std::move(flushed);
  }
  return first;
}

std::vector<std::shared_ptr<Export>> ImageExports::Open() {
  std::scoped_lock lock(mutex_);
  std::vector<std::shared_ptr<Export>> open;
  for (const Entry& entry : entries_) {
    auto one = entry.ready ? entry.ready : entry.opened.lock();
    if (one) open.push_back(std::move(one));
  }
  return open;
}

}  // namespace platter::nbd
