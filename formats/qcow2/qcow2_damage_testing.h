// Images damaged on purpose: made by QEMU's tools, then patched at computed places, and judged by
// `qemu-img check`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/format.h"
#include "formats/qcow2/qcow2_parse.h"
#include "formats/qcow2/qcow2_testing.h"

namespace platter::qcow2 {

// The bytes of a small image in memory, with its parsed header.
class Patient {
 public:
  explicit Patient(std::vector<std::byte> bytes);

  std::vector<std::byte>& bytes() { return bytes_; }
  const Header& header() const { return header_; }

  uint64_t Get64(uint64_t at) const;
  void Set64(uint64_t at, uint64_t value);

  // Where things stand in the file.
  uint64_t L1Entry(uint64_t index) const { return header_.l1_offset + index * 8; }
  uint64_t L2Entry(uint64_t index) const;  // of the first L2 table
  uint64_t RefcountTableEntry(uint64_t index) const {
    return header_.refcount_table_offset + index * 8;
  }
  uint64_t Host(uint64_t l2_index) const { return Get64(L2Entry(l2_index)) & kOffsetMask; }

  // Through the first refcount block.
  uint64_t Refcount(uint64_t cluster) const;
  void SetRefcount(uint64_t cluster, uint64_t value);

 private:
  std::vector<std::byte> bytes_;
  Header header_;
};

// What `qemu-img check` says; class as its exit status.
struct Verdict {
  int status = -1;
  uint64_t leaks = 0, corruptions = 0, errors = 0;
  uint64_t image_end = 0, total = 0, allocated = 0, compressed = 0, fragmented = 0;
};

// The exit status that a report stands for: 0 clean, 1 errors, 2 corruptions, 3 leaks.
int StatusOf(const CheckReport& report);

// All findings, one a line, fixed ones marked.
std::string Text(const CheckReport& report);

class DamageTest : public QemuTest {
 protected:
  // Runs qemu-img create, then qemu-io with each of `commands`.
  void Make(const std::string& name, const std::string& options, const std::string& size,
            const std::vector<std::string>& commands);
  Patient Load(const std::string& name);
  void Save(const std::string& name, Patient& patient);

  CheckReport Check(const std::string& name, CheckOptions::Repair repair = CheckOptions::kNone);
  Verdict Judge(const std::string& name);
  // SHA-256 of what the guest sees, empty where qemu-img cannot read it.
  std::string Content(const std::string& name);
};

}  // namespace platter::qcow2
