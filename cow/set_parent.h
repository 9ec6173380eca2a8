// Which parent an image records: looked at, and changed.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cow/disk.h"
#include "formats/format.h"

namespace platter {

// What a format may want to record of `parent`, a disk that was opened from a file, as the parent
// of the image at `image_path`. kIo.
Result<ParentFile> LookAtParent(const Disk& parent, const std::string& image_path,
                                const Gate& gate);

// The image at `path` records `parent` (nothing: none) from now on. Crash-safe. The image is opened
// for that, as `options` say; nobody else has it open. kUnsupported where the format has no parents
// or cannot record this one.
Result<> SetParent(const std::string& path, const DiskOptions& options, const Gate& gate,
                   const std::optional<Reference>& parent, const std::optional<ParentFile>& file);

// The parent that `info` records, or null.
const Reference* ParentOf(const Info& info);

// Which image of the chain that `entries` describe the user means by `name`: a path or a URL, from
// here or from the folder of the first image, or the name that an image records. kOutOfRange.
Result<size_t> FindInChain(const std::vector<ChainEntry>& entries, const std::string& name,
                           const Gate& gate);

// How the image of `entry` is to be opened when nobody says what its format is: an image that only
// looked like raw bytes stays a guess.
std::string FormatToOpen(const std::vector<ChainEntry>& entries, size_t index);

}  // namespace platter
