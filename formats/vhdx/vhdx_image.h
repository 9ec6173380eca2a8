// What stands at the start of a VHDX file: headers, log, region tables, metadata.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "formats/vhdx/vhdx_log.h"
#include "formats/vhdx/vhdx_parse.h"
#include "io/info.h"
#include "io/store.h"

namespace platter::vhdx {

// The two headers. The valid one with the higher sequence number counts.
struct Headers {
  Header current;
  int slot = 0;                         // where `current` is: 0 or 1
  std::array<std::string, 2> problems;  // why one does not count; empty: it is good
};
Result<Headers> ReadHeaders(Store& file);

// Changes the current header: the other slot first, then this one, with a Sync after each, so that
// one of them is whole at any moment and both say the same afterwards.
Result<> UpdateHeaders(Store& file, Headers& headers, const std::function<void(Header&)>& change);

// Everything else that opening reads. `file` shows the log replayed.
struct Image {
  std::string creator;
  Headers headers;
  Regions regions;
  std::array<std::string, 2> region_problems;
  Metadata metadata;
  size_t replayed_entries = 0;  // of the log: it had to be replayed
};

// The image in `file`. Where its log is not empty, `replayed` is how the file reads afterwards, and
// nothing else of it counts. Writes nothing.
Result<Image> ReadImage(Store& file, std::unique_ptr<ReplayedStore>& replayed);

// Writes what the log says to the file, and empties it. `replayed` as ReadImage left it.
Result<> FinishReplay(Store& file, Image& image, std::unique_ptr<ReplayedStore> replayed);

Info MakeInfo(const Image& image);

}  // namespace platter::vhdx
