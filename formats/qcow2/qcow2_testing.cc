#include "formats/qcow2/qcow2_testing.h"

#include <algorithm>
#include <utility>

#include "formats/options.h"
#include "formats/qcow2/qcow2_create.h"
#include "formats/testing/named_stores.h"

namespace platter::qcow2 {

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

std::unique_ptr<FileStore> QemuTest::NewFile(const std::string& name) {
  std::filesystem::remove(Path(name));
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
  auto taken = TakeCommonOptions(create);
  ASSERT_TRUE(taken.has_value()) << taken.error().text();
  Create(name, std::move(create));
}

void QemuTest::ExpectClean(const std::string& name, const std::string& what) {
  Outcome check = Shell("qemu-img check " + Path(name));
  EXPECT_EQ(check.exit_code, 0) << what << "\n" << check.output;
}

}  // namespace platter::qcow2
