// What the tests of this folder share: images in memory.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "formats/format.h"
#include "formats/testing/named_stores.h"
#include "formats/vmdk/vmdk_parse.h"
#include "tests/model/subject.h"

namespace platter::vmdk {

using Options = std::map<std::string, std::string>;

// An image and its further files.
struct TestImage {
  MemoryStore store;
  NamedStores files;

  Result<> Create(uint64_t size, const Options& options, const Layer* parent = nullptr,
                  const std::string& parent_name = "parent.vmdk");
  // A descriptor with this text.
  void Describe(std::string_view text);
  Result<std::unique_ptr<Layer>> Open(bool writable, bool fresh = false);
  Result<CheckReport> Check(CheckOptions::Repair repair = CheckOptions::kNone);
};

// `length` bytes that repeat nowhere.
std::vector<std::byte> Noise(size_t length, uint64_t seed);
// All that the disk reads as.
Result<std::vector<std::byte>> Content(Layer& layer);
// The texts of a report, one a line.
std::string Findings(const CheckReport& report);

// For the drivers of tests/model: an image in one file.
model::Subject SubjectOf(std::string name, uint64_t size, Options options, bool parent = false);

}  // namespace platter::vmdk
