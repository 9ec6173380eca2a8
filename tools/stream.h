// Pipes: raw bytes from standard input into an image, and from a disk to standard output, raw or
// as an image that can be written front to back. Who waits for a pipe and is interrupted gives up
// if the user wants us to stop (kRefused, "cancelled").
#pragma once

#include <string>

#include "formats/format.h"
#include "io/engine/engine.h"

namespace platter {

// Writes all guest bytes to `fd` in order, holes as zeros. Reading is parallel.
Result<> ExportRaw(Layer& from, int fd, unsigned threads, Progress& progress);

// Writes the image to `fd`. The disk is read twice, since what holds no more than zeros has to be
// known before the first byte of data; `zeros_too`: everything is data, and is read once. Memory: a
// few buffers for each thread, and one bit for each unit of what holds data.
Result<> ExportImage(Layer& from, ImageStream& image, int fd, bool zeros_too, unsigned threads,
                     Progress& progress);

// Reads `fd` to its end into `to` from its first byte on, growing the disk as
// needed and cutting it to what came. Returns the number of bytes. `to` offers
// a Resizer.
Result<uint64_t> ImportRaw(int fd, Layer& to, const CopyOptions& options);

// Copies all of a file to `fd`. Its name is gone from the start.
Result<> MoveFileTo(const std::string& path, int fd);

// Writes standard input, or whatever `fd` is, to an unlinked temporary file (in
// TMPDIR) and returns a path that opens it (/proc/self/fd/N); for formats that
// need to seek.
Result<std::string> SpoolToFile(int fd);

}  // namespace platter
