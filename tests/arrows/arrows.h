// Which folder may include which: the table of docs/ARCHITECTURE.md as code. Bazel's visibility
// alone does not hold it, since with GCC a header that arrives through another library compiles.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace platter::arrows {

struct SourceFile {
  std::string path;  // from the root of the repository, as in "io/store.h"
  std::string text;
};

struct Include {
  int line;
  bool quoted;  // "..." rather than <...>
  std::string path;
};

// The include directives of a source text, those in comments left out.
std::vector<Include> IncludesOf(std::string_view text);

// What is wrong with these files, one line each, as "path:line: reason"; empty if nothing is.
std::vector<std::string> Check(const std::vector<SourceFile>& files);

// True for what Check wants to see: C++ sources outside hidden folders, Bazel's links and
// third_party/.
bool IsSource(std::string_view path);

}  // namespace platter::arrows
