#include "tools/map_picture.h"

#include <png.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/size.h"

namespace platter {
namespace {

struct Color {
  unsigned red, green, blue;
};

struct LegendEntry {
  const char* name;
  Color color;
};

constexpr LegendEntry kLegend[MapCell::kClasses] = {
    {"data", {37, 99, 235}},        {"data of parents", {13, 148, 136}},
    {"compressed", {147, 51, 234}}, {"allocated zeros", {203, 213, 225}},
    {"nothing", {248, 250, 252}},
};
constexpr LegendEntry kChangesLegend[MapCell::kClasses] = {
    {"changed", {220, 38, 38}},     {nullptr, {}}, {nullptr, {}}, {nullptr, {}},
    {"unchanged", {248, 250, 252}},
};
constexpr unsigned kCellPixels = 8;

const LegendEntry& Legend(const MapGrid& grid, unsigned kind) {
  return grid.changes ? kChangesLegend[kind] : kLegend[kind];
}

MapCell::Class ClassOf(const MapEntry& entry) {
  if (entry.compressed) return MapCell::kCompressed;
  if (entry.data) return entry.depth == 0 ? MapCell::kTop : MapCell::kParents;
  return entry.present ? MapCell::kZeros : MapCell::kNothing;
}

// The classes' colors mixed by their bytes; a little data in a large cell must
// still be seen, so that what is stored weighs at least an eighth.
Color Mix(const MapGrid& grid, const MapCell& cell) {
  double weights[MapCell::kClasses], total = 0, stored = 0;
  for (unsigned i = 0; i < MapCell::kClasses; ++i) {
    weights[i] = static_cast<double>(cell.bytes[i]);
    total += weights[i];
    if (i < MapCell::kZeros) stored += weights[i];
  }
  if (stored > 0 && stored < total / 8) {
    double boost = total / 8 / stored;
    for (unsigned i = 0; i < MapCell::kZeros; ++i) weights[i] *= boost;
  }
  double red = 0, green = 0, blue = 0, sum = 0;
  for (unsigned i = 0; i < MapCell::kClasses; ++i) {
    red += weights[i] * Legend(grid, i).color.red;
    green += weights[i] * Legend(grid, i).color.green;
    blue += weights[i] * Legend(grid, i).color.blue;
    sum += weights[i];
  }
  if (sum == 0) return Legend(grid, MapCell::kNothing).color;
  auto channel = [sum](double value) { return static_cast<unsigned>(value / sum + 0.5); };
  return {channel(red), channel(green), channel(blue)};
}

std::string Describe(const MapGrid& grid, const MapCell& cell) {
  std::string text;
  for (unsigned i = 0; i < MapCell::kClasses; ++i) {
    if (cell.bytes[i] > 0)
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", HumanSize(cell.bytes[i]),
                          Legend(grid, i).name);
  }
  return text;
}

std::string EscapeHtml(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '&': out += "&amp;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

}  // namespace

MapGrid MapGrid::For(Range range) {
  constexpr uint64_t kMostCells = MapGrid::kColumns * MapGrid::kRows;
  MapGrid grid;
  grid.range = range;
  grid.cell_bytes = std::max<uint64_t>(512, RoundUp(DivideUp(range.length, kMostCells), 512));
  grid.cells.resize(DivideUp(range.length, grid.cell_bytes));
  return grid;
}

void MapGrid::Add(Range part, MapCell::Class kind) {
  for (uint64_t at = part.offset; at < part.end();) {
    uint64_t index = (at - range.offset) / cell_bytes;
    uint64_t end = std::min(part.end(), range.offset + (index + 1) * cell_bytes);
    cells[index].bytes[kind] += end - at;
    at = end;
  }
}

Result<MapGrid> MakeMapGrid(Disk& disk, Range range) {
  MapGrid grid = MapGrid::For(range);
  TRY(ForEachMapEntry(disk, range,
                      [&](const MapEntry& entry) { grid.Add(entry.range, ClassOf(entry)); }));
  return grid;
}

std::string MapHtml(const MapGrid& grid, const std::string& title) {
  std::array<uint64_t, MapCell::kClasses> totals{};
  for (const MapCell& cell : grid.cells) {
    for (unsigned i = 0; i < MapCell::kClasses; ++i) totals[i] += cell.bytes[i];
  }
  std::string html = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><meta "
      "charset=\"utf-8\"><title>{0}</title>\n"
      "<style>body{{font:15px system-ui,sans-serif;margin:2em;color:#0f172a}}"
      ".legend span{{display:inline-block;margin-right:1.5em}}"
      ".legend "
      "i{{display:inline-block;width:1em;height:1em;margin-right:.4em;border:"
      "1px solid #64748b;vertical-align:-.15em}}"
      "svg{{max-width:100%;border:1px solid #94a3b8}}</style>\n"
      "<h1>{0}</h1>\n<p>{1} of disk ({2} bytes), one cell for {3}, row by row "
      "from the top left.</p>\n<p class=\"legend\">",
      EscapeHtml(title), HumanSize(grid.range.length), grid.range.length,
      HumanSize(grid.cell_bytes));
  for (unsigned i = 0; i < MapCell::kClasses; ++i) {
    if (!Legend(grid, i).name) continue;
    const Color& c = Legend(grid, i).color;
    html += fmt::format("<span><i style=\"background:rgb({},{},{})\"></i>{}: {}</span>", c.red,
                        c.green, c.blue, Legend(grid, i).name, HumanSize(totals[i]));
  }
  uint64_t rows = std::max<uint64_t>(1, DivideUp(grid.cells.size(), MapGrid::kColumns));
  html += fmt::format(
      "</p>\n<svg viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
      "height=\"{1}\" shape-rendering=\"crispEdges\">\n",
      MapGrid::kColumns * kCellPixels, rows * kCellPixels);
  for (size_t i = 0; i < grid.cells.size(); ++i) {
    Color c = Mix(grid, grid.cells[i]);
    html += fmt::format(
        "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" "
        "fill=\"#{:02x}{:02x}{:02x}\"><title>{:#x}: {}</title></rect>\n",
        i % MapGrid::kColumns * kCellPixels, i / MapGrid::kColumns * kCellPixels, kCellPixels,
        kCellPixels, c.red, c.green, c.blue, grid.range.offset + i * grid.cell_bytes,
        Describe(grid, grid.cells[i]));
  }
  return html + "</svg>\n</html>\n";
}

Result<> WriteMapPng(const MapGrid& grid, const std::string& path) {
  uint32_t rows =
      static_cast<uint32_t>(std::max<uint64_t>(1, DivideUp(grid.cells.size(), MapGrid::kColumns)));
  uint32_t width = MapGrid::kColumns * kCellPixels, height = rows * kCellPixels;
  std::vector<png_byte> pixels(size_t{width} * height * 3, 255);
  for (size_t i = 0; i < grid.cells.size(); ++i) {
    Color c = Mix(grid, grid.cells[i]);
    size_t left = i % MapGrid::kColumns * kCellPixels, top = i / MapGrid::kColumns * kCellPixels;
    for (size_t y = top; y < top + kCellPixels; ++y) {
      for (size_t x = left; x < left + kCellPixels; ++x) {
        png_byte* pixel = &pixels[(y * width + x) * 3];
        pixel[0] = static_cast<png_byte>(c.red);
        pixel[1] = static_cast<png_byte>(c.green);
        pixel[2] = static_cast<png_byte>(c.blue);
      }
    }
  }
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = width;
  image.height = height;
  image.format = PNG_FORMAT_RGB;
  if (!png_image_write_to_file(&image, path.c_str(), 0, pixels.data(), 0, nullptr)) {
    return Fail(Code::kIo, "write '{}': {}", Printable(path, 4096), image.message);
  }
  return {};
}

Result<> DrawGrid(const MapGrid& grid, const std::string& title, const std::string& path) {
  bool png = path.ends_with(".png");
  if (!png && !path.ends_with(".html")) {
    return Fail(Code::kUnsupported, "--picture '{}': the name must end in .png or .html",
                Printable(path, 4096));
  }
  if (png) return WriteMapPng(grid, path);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << MapHtml(grid, Printable(title, 4096));
  file.close();
  if (!file) return FailErrno(errno, "write '{}'", Printable(path, 4096));
  return {};
}

Result<> DrawMap(Disk& disk, Range range, const std::string& title, const std::string& path) {
  return DrawGrid(TRY(MakeMapGrid(disk, range)), title, path);
}

}  // namespace platter
