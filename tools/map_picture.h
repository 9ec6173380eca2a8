// Drawing where a disk's content is: `map --picture`.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "tools/map_entries.h"

namespace platter {

// What a cell of the picture holds, in bytes of each class. The classes, in the
// order of the legend: data of the top layer, data of its parents, compressed
// data, allocated zeros, nothing.
struct MapCell {
  enum Class : unsigned { kTop, kParents, kCompressed, kZeros, kNothing, kClasses };
  std::array<uint64_t, kClasses> bytes{};
};

struct MapGrid {
  static constexpr unsigned kColumns = 128, kRows = 64;
  Range range;
  uint64_t cell_bytes = 0;     // each cell but perhaps the last
  std::vector<MapCell> cells;  // row by row; at most kColumns * kRows
};

Result<MapGrid> MakeMapGrid(Disk& disk, Range range);

// Writes the picture to `path`, whose ending says how: .png, or .html with
// legend and tooltips.
Result<> DrawMap(Disk& disk, Range range, const std::string& title, const std::string& path);

// The parts of it, for tests.
std::string MapHtml(const MapGrid& grid, const std::string& title);
Result<> WriteMapPng(const MapGrid& grid, const std::string& path);

}  // namespace platter
