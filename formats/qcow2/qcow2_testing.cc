#include "formats/qcow2/qcow2_testing.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "formats/qcow2/qcow2_create.h"
#include "formats/testing/named_stores.h"

namespace platter::qcow2 {

namespace fs = std::filesystem;

Outcome Shell(const std::string& command) {
  Outcome outcome;
  FILE* pipe = popen(("( " + command + " ) 2>&1").c_str(), "r");
  if (pipe == nullptr) return outcome;
  char buffer[4096];
  while (size_t got = fread(buffer, 1, sizeof buffer, pipe)) outcome.text.append(buffer, got);
  int status = pclose(pipe);
  if (WIFEXITED(status)) outcome.status = WEXITSTATUS(status);
  return outcome;
}

std::map<std::string, std::string> OptionsOf(std::string_view text) {
  std::map<std::string, std::string> options;
  while (!text.empty()) {
    std::string_view one = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), one.size() + 1));
    size_t equals = one.find('=');
    options[std::string(one.substr(0, equals))] = std::string(one.substr(equals + 1));
  }
  return options;
}

void QemuTest::SetUp() {
  ASSERT_EQ(Shell("qemu-img --version && qemu-io --version").status, 0)
      << "needs qemu-img and qemu-io: apt-get install qemu-utils";
  const char* base = std::getenv("TEST_TMPDIR");
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  dir_ = fs::path(base != nullptr ? base : "/tmp") /
         fmt::format("{}.{}.{}", test->test_suite_name(), test->name(), getpid());
  fs::create_directories(dir_);
}

void QemuTest::TearDown() {
  if (!dir_.empty()) fs::remove_all(dir_);
}

std::unique_ptr<FileStore> QemuTest::NewFile(const std::string& name) {
  fs::remove(Path(name));
  auto store = FileStore::Create(Path(name));
  EXPECT_TRUE(store.has_value()) << store.error().text();
  return store.has_value() ? std::move(*store) : nullptr;
}

std::unique_ptr<FileStore> QemuTest::OpenFile(const std::string& name) {
  auto store = FileStore::Open(Path(name), FileStoreOptions{.writable = true});
  EXPECT_TRUE(store.has_value()) << store.error().text();
  return store.has_value() ? std::move(*store) : nullptr;
}

void QemuTest::Create(const std::string& name, CreateOptions options) {
  std::unique_ptr<FileStore> data;
  NamedStores files;
  if (auto data_file = options.options.find("data_file"); data_file != options.options.end()) {
    data = NewFile("data");
    files.Lend(data_file->second, *data);
    options.files = &files;
  }
  auto store = NewFile(name);
  ASSERT_NE(store, nullptr);
  auto created = CreateQcow2(*store, options);
  ASSERT_TRUE(created.has_value()) << created.error().text();
}

void QemuTest::Create(const std::string& name, uint64_t size,
                      std::map<std::string, std::string> options, const Secret* secret) {
  CreateOptions create;
  create.size = size;
  create.options = std::move(options);
  create.secret = secret;
  Create(name, std::move(create));
}

void QemuTest::ExpectClean(const std::string& name, const std::string& what) {
  Outcome check = Shell("qemu-img check " + Path(name));
  EXPECT_EQ(check.status, 0) << what << "\n" << check.text;
}

}  // namespace platter::qcow2
