// Drawing where a disk's content is: `map --picture`, and what changed: `snapshot diff --picture`.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "tools/map_entries.h"

namespace platter {

// What a cell of the picture holds, in bytes of each class. The classes, in the
// order of the legend: data of the top layer, data of its parents, compressed
// data, allocated zeros, nothing. In a picture of changes: changed, and the rest.
struct MapCell {
  enum Class : unsigned { kTop, kParents, kCompressed, kZeros, kNothing, kClasses };
  static constexpr Class kChanged = kTop, kUnchanged = kNothing;
  std::array<uint64_t, kClasses> bytes{};
};

struct MapGrid {
  static constexpr unsigned kColumns = 128, kRows = 64;
  Range range;
  uint64_t cell_bytes = 0;     // each cell but perhaps the last
  std::vector<MapCell> cells;  // row by row; at most kColumns * kRows
  bool changes = false;        // what the classes mean

  static MapGrid For(Range range);
  // `part` of the range is of this class.
  void Add(Range part, MapCell::Class kind);
};

Result<MapGrid> MakeMapGrid(Disk& disk, Range range);

// Writes the picture to `path`, whose ending says how: .png, or .html with
// legend and tooltips.
Result<> DrawMap(Disk& disk, Range range, const std::string& title, const std::string& path);
Result<> DrawGrid(const MapGrid& grid, const std::string& title, const std::string& path);

// The parts of it, for tests.
std::string MapHtml(const MapGrid& grid, const std::string& title);
Result<> WriteMapPng(const MapGrid& grid, const std::string& path);

}  // namespace platter
