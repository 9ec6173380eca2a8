#include "tools/snapshot_diff.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <vector>

#include "cow/diff.h"
#include "tools/map_picture.h"

namespace platter {
namespace {

// The disk as it was in `snapshot`; parents do not matter.
Result<std::unique_ptr<Disk>> OpenState(const SnapshotDiff& diff, const std::string& snapshot,
                                        bool first, Console& console) {
  ImageOptions image = diff.image;
  image.no_backing = true;
  image.snapshot = snapshot;
  image.quiet |= !first;  // warnings are the same for both
  return image.Open(diff.path, false, console);
}

}  // namespace

Result<> ShowSnapshotDiff(const SnapshotDiff& diff, Console& console) {
  auto from = TRY(OpenState(diff, diff.from, true, console));
  auto to = TRY(OpenState(diff, diff.to, false, console));
  uint64_t bytes = 0;
  bool first = true;
  const bool json = diff.output == "json";
  const Range all{0, std::max(from->info().size, to->info().size)};
  MapGrid grid = MapGrid::For(all);
  grid.changes = true;
  uint64_t at = 0;
  auto put = [&](Range changed) {
    bytes += changed.length;
    if (!diff.picture.empty()) {
      grid.Add(Range::FromTo(at, changed.offset), MapCell::kUnchanged);
      grid.Add(changed, MapCell::kChanged);
      at = changed.end();
    } else if (json) {
      nlohmann::ordered_json entry = {{"start", changed.offset}, {"length", changed.length}};
      console.Print("{}{}", first ? "" : ",\n", entry.dump());
      first = false;
    } else {
      console.Print("{:<#16x}{:<#16x}\n", changed.offset, changed.length);
    }
    return true;
  };
  if (diff.picture.empty()) {
    console.Out(json ? "[" : fmt::format("{:<16}{:<16}\n", "Offset", "Length"));
  }
  TRY(VisitChanged(from->layer(0), to->layer(0), all, put));
  if (!diff.picture.empty()) {
    grid.Add(Range::FromTo(at, all.end()), MapCell::kUnchanged);
    return DrawGrid(grid,
                    fmt::format("{}: from {} to {}", diff.path, diff.from,
                                diff.to.empty() ? "the disk as it is" : diff.to),
                    diff.picture);
  }
  if (json) {
    console.Out("]\n");
  } else {
    console.Print("{} bytes may differ\n", bytes);
  }
  return {};
}

}  // namespace platter
