#include "nbd/image_exports.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/bytes.h"
#include "base/size.h"
#include "cow/diff.h"
#include "cow/partitions.h"
#include "io/bitmapper.h"

namespace platter::nbd {
namespace {

constexpr std::string_view kDiffPrefix = "platter:snapshot-diff:";
// Units of two tables that are compared for one request: its time is bounded.
constexpr uint64_t kMostCompared = 1 << 20;

// What clients call snapshots: by name, and those whose name is not theirs alone by their id.
std::vector<std::string> NamesOf(std::span<const SnapshotInfo> snapshots) {
  std::map<std::string_view, size_t> count;
  for (const SnapshotInfo& snapshot : snapshots) ++count[snapshot.name];
  std::vector<std::string> names;
  for (const SnapshotInfo& snapshot : snapshots) {
    const bool unique = !snapshot.name.empty() && count[snapshot.name] == 1;
    names.push_back(unique ? snapshot.name : snapshot.id);
  }
  return names;
}

VisitMarked DirtySince(std::shared_ptr<Disk> disk, std::string bitmap) {
  return [disk = std::move(disk), bitmap = std::move(bitmap)](
             Range within, const std::function<bool(Range)>& visit) -> Result<uint64_t> {
    TRY(disk->bitmapper()->VisitDirty(bitmap, within, visit));
    return within.end();
  };
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

std::shared_ptr<Export> ImageExports::MakeExport(size_t index, std::shared_ptr<Disk> disk,
                                                 Part part) {
  auto made = std::make_shared<Export>();
  made->name = std::move(part.name);
  made->description = std::move(part.description);
  made->window = part.window;
  made->writable = part.writable;
  made->rotational = images_[index].served.rotational;
  made->contexts = {{MetaContext::kAllocation, "base:allocation"},
                    {MetaContext::kDepth, "qemu:allocation-depth"}};
  if (disk->bitmapper()) {
    for (const BitmapInfo& bitmap : disk->info().bitmaps) {
      // What an interrupted program left says nothing.
      if (bitmap.in_use) continue;
      made->contexts.push_back({MetaContext::kMarked, "qemu:dirty-bitmap:" + bitmap.name,
                                DirtySince(disk, bitmap.name)});
    }
  }
  AddDiffContexts(index, disk, *made);
  made->layer = std::move(disk);
  return made;
}

void ImageExports::AddDiffContexts(size_t index, const std::shared_ptr<Disk>& disk, Export& to) {
  const Image& image = images_[index];
  for (size_t i = 0; i < image.snapshots.size(); ++i) {
    std::string name = std::string(kDiffPrefix) + image.snapshots[i];
    if (name.size() > kMostString) continue;  // no client could ask for it
    auto visit = [this, index, disk, id = image.served.disk->info().snapshots[i].id](
                     Range within, const std::function<bool(Range)>& visit) -> Result<uint64_t> {
      auto then = TRY(StateForComparing(index, id));
      Pin pin = disk->Hold();
      const uint64_t unit = std::max<uint64_t>(disk->info().unit, 1);
      within.length = std::min(within.length, unit * kMostCompared);
      TRY(VisitChanged(then->layer(0), disk->layer(0), within, visit));
      return within.end();
    };
    to.contexts.push_back({MetaContext::kMarked, std::move(name), std::move(visit)});
  }
}

Result<std::shared_ptr<Disk>> ImageExports::StateForComparing(size_t index,
                                                              const std::string& snapshot) {
  std::scoped_lock lock(mutex_);
  std::shared_ptr<Disk>& state = images_[index].compared[snapshot];
  if (!state) state = TRY(images_[index].served.open_snapshot(snapshot));
  return state;
}

// A partition that would lose its end is somebody's, most likely.
Result<> ImageExports::AllowSize(size_t index, uint64_t size) const {
  for (const Entry& entry : entries_) {
    if (entry.image != index || !entry.ready || entry.ready->resizable) continue;
    const uint64_t end = entry.ready->window.end();
    if (end <= size) continue;
    return Fail(Code::kRefused, "'{}' ends at {:#x}: the disk cannot shrink to {:#x} bytes",
                Printable(entry.name), end, size);
  }
  return {};
}

Result<> ImageExports::Add(ServedImage image) {
  const size_t index = images_.size();
  auto disk = image.disk;
  const Info& info = disk->info();
  const std::string name = image.name;
  const std::string description = fmt::format("{}, {}", info.format, HumanSize(info.size));
  const bool writable = image.writable;
  auto snapshots = image.open_snapshot ? NamesOf(info.snapshots) : std::vector<std::string>();
  images_.push_back({std::move(image), std::move(snapshots), {}});
  auto whole = MakeExport(index, disk, {name, description, {0, info.size}, writable});
  if (writable && disk->resizer()) {
    whole->resizable = std::make_unique<ResizableSize>(
        disk, [this, index](uint64_t size) { return AllowSize(index, size); });
  }
  TRY(AddEntry({name, description, whole, index, "", {}}));
  TRY(AddPartitions(index));
  return AddSnapshots(index);
}

Result<> ImageExports::AddPartitions(size_t index) {
  const ServedImage& image = images_[index].served;
  for (const Partition& partition : TRY(ReadPartitions(*image.disk))) {
    const std::string name = fmt::format("{}/p{}", image.name, partition.number);
    const std::string description = DescribePartition(partition);
    auto part = MakeExport(index, image.disk, {name, description, partition.range, image.writable});
    TRY(AddEntry({name, description, part, index, "", {}}));
  }
  return {};
}

Result<> ImageExports::AddSnapshots(size_t index) {
  const Image& image = images_[index];
  for (size_t i = 0; i < image.snapshots.size(); ++i) {
    const SnapshotInfo& snapshot = image.served.disk->info().snapshots[i];
    TRY(AddEntry(
        {image.served.name + "@" + image.snapshots[i],
         fmt::format("snapshot '{}', {}", Printable(snapshot.name), HumanSize(snapshot.disk_size)),
         nullptr,
         index,
         snapshot.id,
         {}}));
  }
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
  std::shared_ptr<Disk> disk = TRY_AS("export '" + Printable(entry.name) + "'",
                                      images_[entry.image].served.open_snapshot(entry.snapshot));
  const uint64_t size = disk->info().size;
  auto opened = MakeExport(entry.image, disk, {entry.name, entry.description, {0, size}, false});
  entry.opened = opened;
  return opened;
}

void ImageExports::ForEach(
    const std::function<void(const std::string&, const std::string&)>& each) {
  for (const Entry& entry : entries_) each(entry.name, entry.description);
}

Result<> ImageExports::Flush() {
  Result<> first;
  for (const Image& each : images_) {
    const ServedImage& image = each.served;
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
