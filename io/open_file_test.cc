#include "io/open_file.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <string_view>

namespace platter {
namespace {

class OpenFileTest : public testing::Test {
 protected:
  OpenFileTest() {
    char pattern[] = "/tmp/open_file_XXXXXX";  // short: a socket's address is at most 108 bytes
    dir_ = mkdtemp(pattern);
  }
  ~OpenFileTest() override { std::filesystem::remove_all(dir_); }
  std::string Refusal(const std::string& path) {
    for (bool writable : {false, true}) {
      auto store = OpenFileStore(path, {.writable = writable});
      if (store.has_value()) return "opened";
      EXPECT_EQ(store.error().code(), Code::kRefused);
      if (writable) return store.error().text();
    }
    return "";
  }
  std::string dir_;
};

TEST_F(OpenFileTest, WhatIsNoImageIsNamed) {
  constexpr std::string_view kEnd = ": an image is a regular file or a block device";
  EXPECT_EQ(Refusal(dir_), "'" + dir_ + "' is a directory" + std::string(kEnd));
  EXPECT_EQ(Refusal("/dev/null"), "'/dev/null' is a character device" + std::string(kEnd));
  std::string pipe = dir_ + "/pipe", address = dir_ + "/socket";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(Refusal(pipe), "'" + pipe + "' is a pipe" + std::string(kEnd));
  int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un name{.sun_family = AF_UNIX, .sun_path = {}};
  address.copy(name.sun_path, sizeof name.sun_path - 1);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
  EXPECT_EQ(Refusal(address), "'" + address + "' is a socket" + std::string(kEnd));
  close(listener);
  EXPECT_EQ(Refusal(std::string("a\0b", 3)), "cannot open 'a\\x00b': a NUL byte in the name");
}

TEST_F(OpenFileTest, MissingAndForbiddenFilesGiveTheirErrno) {
  auto store = OpenFileStore(dir_ + "/none", {});
  ASSERT_FALSE(store.has_value());
  EXPECT_EQ(store.error().text(), "cannot open '" + dir_ + "/none': No such file or directory");
  EXPECT_EQ(store.error().errno_value(), ENOENT);
  ASSERT_EQ(symlink("loop", (dir_ + "/loop").c_str()), 0);
  EXPECT_EQ(OpenFileStore(dir_ + "/loop", {}).error().errno_value(), ELOOP);
}

TEST_F(OpenFileTest, LinksAreFollowed) {
  ASSERT_TRUE(FileStore::Create(dir_ + "/a").has_value());
  ASSERT_EQ(symlink("a", (dir_ + "/b").c_str()), 0);
  auto store = OpenFileStore(dir_ + "/b", {.writable = true});
  ASSERT_TRUE(store.has_value()) << store.error().text();
  EXPECT_EQ((*store)->name(), dir_ + "/b");
  EXPECT_GE((*store)->fd(), 0);
}

}  // namespace
}  // namespace platter
