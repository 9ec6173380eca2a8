// The lists that describe a collection of images: tab-separated, one header line.
#pragma once

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace platter::testing_support {

// The rows below the header, each of `columns` cells; what a row lacks is empty.
inline std::vector<std::vector<std::string>> ReadTable(const std::string& path, size_t columns) {
  std::vector<std::vector<std::string>> rows;
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);  // the header
  while (std::getline(in, line)) {
    std::vector<std::string> cells;
    std::stringstream split(line);
    for (std::string cell; std::getline(split, cell, '\t');) cells.push_back(cell);
    cells.resize(columns);
    rows.push_back(std::move(cells));
  }
  return rows;
}

}  // namespace platter::testing_support
