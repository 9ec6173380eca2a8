// Random histories of a chain of images on disk: what is done to them, and what they should hold.
// For the test of long histories and for the torture.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "cow/disk.h"
#include "tests/model/random.h"

namespace platter::history {

using model::Random;

struct Op {
  enum Kind : uint8_t {
    kWrite,
    kZero,
    kFlush,
    kSnapshot,  // inside the image: makes it, goes back to it, deletes it
    kApply,
    kDelete,
    kExternal,  // an overlay
    kCommit,    // into some parent
    kStream,    // what some parents hold, or all
    kRebase,    // onto an image with other content
    kResize,
    kCompact,  // the image's file
    kBitmap,   // a bitmap of what is written begins, or begins anew
  } kind = kFlush;
  Range range;
  uint64_t number = 0;  // seed of content, or which parent
  std::string name;
  uint64_t size = 0;
  bool by_qemu = false;  // QEMU's programs do it

  std::string ToText() const;
};

// What is in the chain.
struct Setup {
  std::string name;
  std::string top, base;  // formats
  uint64_t size = 0;      // bytes of the disk to begin with
  bool qemu = false;      // QEMU can write to the chain
  // Internal snapshots, bitmaps, compacting.
  bool snapshots() const { return top == "qcow2"; }
  // Whether all images can have any size, and another one later.
  bool resizes() const { return top == "qcow2" && base != "vmdk"; }
};
std::vector<Setup> Setups();

// What the disk should hold.
struct Model {
  std::vector<std::byte> bytes;
  std::map<std::string, std::vector<std::byte>> snapshots;
  // What the disk held when its bitmap began; nothing: there is none that is to be trusted.
  std::optional<std::vector<std::byte>> marked;
  bool bitmap = false;    // there is one, maybe such
  unsigned made = 0;      // names that were used
  unsigned overlays = 0;  // since the image stood alone

  // What `op` may do next, given what is there.
  Op Pick(Random& random, const Setup& setup) const;
  void Do(const Op& op);
};

// The content that a write of `op` brings.
std::vector<std::byte> ContentOf(const Op& op);

// The images, in a folder of their own. One thread.
class Machine {
 public:
  Machine(std::string folder, Setup setup) : folder_(std::move(folder)), setup_(std::move(setup)) {}

  // An overlay over a base with random content; `model` is told.
  Result<> Create(Random& random, Model& model);
  Result<> Do(const Op& op);
  // Flushes, and lets go of the image.
  Result<> Close();

  // What the image reads as.
  Result<std::vector<std::byte>> Read(const std::string& snapshot = "") const;
  // Empty if the image is as `model` says, and sound as far as we and QEMU can tell. Closes it.
  Result<std::string> Judge(const Model& model);
  // Paths of the chain, the image first.
  Result<std::vector<std::string>> Chain() const;
  // Removes files that are not part of the chain.
  Result<> Tidy() const;

  // Those of the image, by what its header says.
  Result<std::vector<BitmapInfo>> Bitmaps() const;

  std::string top() const { return folder_ + "/disk." + setup_.top; }
  const Setup& setup() const { return setup_; }

 private:
  Result<Disk*> disk();
  Result<> DoByQemu(const Op& op);
  Result<> MakeBase(const std::string& path, const std::string& format, uint64_t size,
                    Random& random, std::vector<std::byte>* content);
  Result<> RebaseOnto(const Op& op);
  Result<> Compact() const;
  Result<> BeginBitmap(uint64_t number);
  Result<std::string> JudgeBitmap(const Model& model) const;
  Result<std::string> JudgeByQemu(const Model& model) const;

  const std::string folder_;
  const Setup setup_;
  std::unique_ptr<Disk> disk_;
};

}  // namespace platter::history
