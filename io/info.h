// What an image says of itself: filled once at open, read by `platter info`, the Gate and tests.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace platter {

// Another file that an image names. Opening it is a decision of cow/Gate, never of a format.
struct Reference {
  enum Role : uint8_t { kParent, kData } role = kParent;
  // As written in the image, raw bytes: print it through Printable(). Empty where the image knows
  // its parent by id alone (VDI).
  std::string name;
  std::string format;  // as recorded in the image; empty where it records none
  // Where to look for it, in this order, as paths of this system; empty: at `name`.
  std::vector<std::string> paths;
  // Who the parent has to be. Empty: the image does not say.
  std::string id;                     // its Identity::id
  std::vector<std::string> versions;  // one of them its Identity::version
  // Seconds since the Epoch: when the parent's file was last changed. Copying a file changes that
  // too, so a difference is worth a warning and no more.
  std::optional<int64_t> modified;
};

// What tells an image, and a state of its content, from all others: children record it of their
// parent. As text, in the form that messages show; empty where the format has none.
struct Identity {
  std::string id;       // for the life of the image: unique id of VDI and VHD
  std::string version;  // new when the content changes: VMDK's CID, VHDX's data write GUID, ...
};

struct SnapshotInfo {
  std::string id, name;
  uint64_t disk_size = 0;      // bytes
  uint64_t vm_state_size = 0;  // bytes
  uint64_t date_seconds = 0;   // since the Epoch
  uint32_t date_nanoseconds = 0;
  uint64_t vm_clock_nanoseconds = 0;
  std::optional<uint64_t> icount;  // instructions, where recorded
};

struct BitmapInfo {
  std::string name;
  uint64_t granularity = 0;              // bytes of disk for one bit
  bool in_use = false, enabled = false;  // `enabled` is the format's "auto" flag
};

// A tree of facts that only one format knows (compat, subformat, UUIDs ...), in display order. The
// names are those of qemu-img's JSON where it has them, so that a script finds what it looks for.
struct Fact;
using Facts = std::vector<Fact>;
struct Fact {
  std::string name;
  std::variant<bool, uint64_t, std::string, Facts, std::vector<std::string>> value;
};

struct Info {
  std::string format;     // "qcow2"
  uint64_t size = 0;      // bytes the guest sees
  uint32_t unit = 0;      // bytes: allocation unit (cluster, block, grain); 0: none
  uint32_t sector = 512;  // bytes: logical sector
  bool writable = false;
  bool encrypted = false;
  bool dirty = false;             // not closed cleanly
  bool corrupt = false;           // marked as corrupt by a program that found it so
  bool compressed_units = false;  // ReservePacked is offered, see compression
  bool only_packed = false;       // what is written has to be packed units: Reserve is refused
  bool new_units_zero = false;    // what is not written of a new unit reads as zeros, at no cost
  std::string compression;        // codec of packed units ("deflate", "zstd"); empty: none
  Identity identity;
  std::vector<Reference> references;  // every file it names, opened or not
  std::vector<SnapshotInfo> snapshots;
  std::vector<BitmapInfo> bitmaps;
  // What is wrong beside the disk itself (a snapshot, a bitmap) and was left out: it can be read
  // all the same. In the form of an error's text, for warnings.
  std::vector<std::string> problems;
  Facts facts;
};

}  // namespace platter
