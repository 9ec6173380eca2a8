#include "tools/convert_snapshots.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "cow/diff.h"
#include "cow/dirty_view.h"

namespace platter {
namespace {

Result<std::unique_ptr<Disk>> OpenState(const std::string& path, const ImageOptions& image,
                                        const std::string& snapshot, Console& console) {
  ImageOptions state = image;
  state.snapshot = snapshot;
  state.quiet = true;  // what there is to say was said when the source was opened
  return state.Open(path, false, console);
}

Result<> CheckSnapshots(const Info& source, Layer& to) {
  if (!to.snapshotter()) {
    return Fail(Code::kUnsupported, "--with-snapshots: {} images hold no snapshots",
                to.info().format);
  }
  for (const SnapshotInfo& snapshot : source.snapshots) {
    if (snapshot.vm_state_size > 0) {
      return Fail(Code::kUnsupported, "--with-snapshots: snapshot '{}' has VM state",
                  Printable(snapshot.name));
    }
    if (snapshot.disk_size == source.size) continue;
    return Fail(Code::kUnsupported, "--with-snapshots: snapshot '{}' has {} bytes, the disk {}",
                Printable(snapshot.name), snapshot.disk_size, source.size);
  }
  return {};
}

// What has changed since `before`.
Result<> CopyChanges(Disk& before, Disk& now, Layer& to, CopyOptions copy) {
  const uint64_t unit = std::max<uint64_t>(to.info().unit, 4096);
  UnitSet changed;
  TRY(VisitChanged(before.layer(0), now.layer(0), {0, now.info().size}, [&](Range range) {
    const Range whole = range.Outward(unit);
    changed.Add({whole.offset / unit, whole.length / unit});
    return true;
  }));
  copy.skip_parent = true;
  copy.target_is_zero = false;
  auto view = DirtyView::Of(now, std::move(changed), unit);
  return Copy(*view, to, {0, now.info().size}, copy);
}

}  // namespace

Result<> CopyWithSnapshots(const std::string& path, const ImageOptions& image, Layer& to,
                           const CopyOptions& copy, Console& console) {
  auto disk = TRY(OpenState(path, image, "", console));
  const std::vector<SnapshotInfo> snapshots = disk->info().snapshots;
  TRY(CheckSnapshots(disk->info(), to));
  std::unique_ptr<Disk> before;
  for (size_t i = 0; i <= snapshots.size(); ++i) {
    const bool last = i == snapshots.size();
    auto now = last ? std::move(disk) : TRY(OpenState(path, image, snapshots[i].id, console));
    if (before) {
      TRY(CopyChanges(*before, *now, to, copy));
    } else {
      TRY(Copy(*now, to, {0, now->info().size}, copy));
    }
    if (!last) TRY(to.snapshotter()->CreateSnapshot(snapshots[i].name));
    before = std::move(now);
  }
  return {};
}

}  // namespace platter
