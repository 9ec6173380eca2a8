// What the tests of this folder share: a scratch folder, and qemu-img and qemu-io as judges.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "formats/format.h"
#include "io/file_store.h"
#include "tests/interop/qemu.h"

namespace platter::qcow2 {

using testing_support::MustRun;
using testing_support::Outcome;
using testing_support::Shell;

// "a=1,b=2" as option names and values.
std::map<std::string, std::string> OptionsOf(std::string_view text);

// A test with a folder of its own.
class QemuTest : public testing::Test {
 protected:
  std::string Path(const std::string& name) const { return folder_.File(name); }
  std::unique_ptr<FileStore> NewFile(const std::string& name);
  std::unique_ptr<FileStore> OpenFile(const std::string& name);

  // Creates `name`, and "data" where `options.options` name a data file. Fails the test if that
  // fails.
  void Create(const std::string& name, CreateOptions options);
  void Create(const std::string& name, uint64_t size, std::map<std::string, std::string> options,
              const Secret* secret = nullptr);

  // `qemu-img check` finds neither errors nor leaks. `what` is for the message.
  void ExpectClean(const std::string& name, const std::string& what);

 private:
  testing_support::TempFolder folder_;
};

}  // namespace platter::qcow2
