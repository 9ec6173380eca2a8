// Copies that go on where they were interrupted: convert --resume.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "base/result.h"
#include "io/fd.h"

namespace platter {

// What is beside an output that is not whole yet: the image, hidden, and a journal that says what
// it is going to be and how far it is.
struct PartialOutput {
  std::string image, journal;
  // Of an output at `path`.
  static PartialOutput For(const std::string& path);
};

class Journal {
 public:
  // `what` says everything on which the output's content depends, one line each.
  Journal(PartialOutput files, std::string what)
      : files_(std::move(files)), what_(std::move(what)) {}

  // How many guest bytes are in the partial image for certain; nothing where there is no journal,
  // or one that was torn. kRefused where it is of another conversion.
  Result<std::optional<uint64_t>> Load() const;
  // They were flushed. A crash leaves the journal of before or of after.
  Result<> Save(uint64_t bytes) const;
  void Remove() const;

 private:
  const PartialOutput files_;
  const std::string what_;
};

// What tells a source file, and a state of its content, from others: path, size, inode, time of the
// last change. kRefused for a device, which has no such time, unless `devices`.
Result<std::string> DescribeSource(const std::string& path, bool devices);

// What stands where the output is going to, if anything does.
class OldOutput {
 public:
  // Nobody else uses it from now on. kRefused where it may not be replaced or is in use,
  // kUnsupported where it is no regular file. Of a symbolic link what it points to is meant.
  static Result<OldOutput> Hold(const std::string& path, bool replace);

  // Where the output goes to: links are resolved.
  const std::string& path() const { return path_; }

  // Makes the partial image durable and gives it the name, with the old one's mode and owner.
  Result<> GiveWay(const PartialOutput& files) const;

 private:
  std::string path_;
  Fd file_;  // locked
};

}  // namespace platter
