#include "io/atomic_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "io/file_store.h"

namespace platter {
namespace {

namespace fs = std::filesystem;

class AtomicFileTest : public testing::Test {
 protected:
  AtomicFileTest() {
    std::string pattern = testing::TempDir() + "atomic_XXXXXX";
    dir_ = mkdtemp(pattern.data());
    path_ = dir_ + "/out.img";
  }
  ~AtomicFileTest() override { fs::remove_all(dir_); }

  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (auto& entry : fs::directory_iterator(dir_)) names.push_back(entry.path().filename());
    return names;
  }
  static std::string Text(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static void WriteText(const std::string& path, const std::string& text) {
    std::ofstream(path) << text;
  }
  AtomicFile Make(AtomicFile::Options options = {}) {
    auto file = AtomicFile::Create(path_, options);
    EXPECT_TRUE(file.has_value()) << file.error().text();
    return std::move(*file);
  }
  static void Fill(AtomicFile& file, std::string_view text) {
    auto store = file.TakeStore();
    EXPECT_TRUE(store->Write(0, AsBytes(text)).has_value());
  }
  std::string Refusal(AtomicFile::Options options = {}) {
    auto file = AtomicFile::Create(path_, options);
    if (file.has_value()) return "created";
    EXPECT_EQ(file.error().code(), Code::kRefused);
    return file.error().text();
  }

  std::string dir_, path_;
};

TEST_F(AtomicFileTest, AppearsWithCommit) {
  AtomicFile file = Make();
  EXPECT_EQ(Names().size(), 1u);
  EXPECT_EQ(fs::path(file.temporary_path()).filename().string().substr(0, 17), ".out.img.platter-");
  {
    auto store = file.TakeStore();
    EXPECT_EQ(store->name(), path_) << "messages call it by its final name";
    EXPECT_TRUE(store->writable());
    EXPECT_TRUE(store->Write(0, AsBytes(std::string_view("whole"))).has_value());
  }
  EXPECT_FALSE(fs::exists(path_));
  Result<> committed = file.Commit();
  ASSERT_TRUE(committed.has_value()) << committed.error().text();
  EXPECT_EQ(Names(), std::vector<std::string>{"out.img"});
  EXPECT_EQ(Text(path_), "whole");
  mode_t mask = umask(022);
  umask(mask);
  EXPECT_EQ(fs::status(path_).permissions(), fs::perms(0666 & ~mask));
}

TEST_F(AtomicFileTest, GoesWithoutCommit) {
  {
    AtomicFile file = Make();
    AtomicFile moved = std::move(file);
    Fill(moved, "half");
    EXPECT_EQ(Names().size(), 1u);
  }
  EXPECT_TRUE(Names().empty());
}

TEST_F(AtomicFileTest, DoesNotReplaceUnasked) {
  WriteText(path_, "old");
  EXPECT_EQ(Refusal(), "'" + path_ + "' exists already (--force replaces it)");
  fs::remove(path_);
  AtomicFile file = Make();
  WriteText(path_, "came meanwhile");
  Result<> committed = file.Commit();
  ASSERT_FALSE(committed.has_value());
  EXPECT_EQ(committed.error().code(), Code::kRefused);
  EXPECT_EQ(Text(path_), "came meanwhile");
}

TEST_F(AtomicFileTest, ReplacesWhenAskedAndKeepsOwnerAndMode) {
  WriteText(path_, "old");
  const uid_t owner = geteuid() == 0 ? 1234 : geteuid();
  ASSERT_EQ(chown(path_.c_str(), owner, static_cast<gid_t>(-1)), 0);
  fs::permissions(path_, fs::perms(0640));
  {
    AtomicFile file = Make({.replace = true});
    Fill(file, "new");
    EXPECT_EQ(Text(path_), "old");
    ASSERT_TRUE(file.Commit().has_value());
  }
  EXPECT_EQ(Text(path_), "new");
  EXPECT_EQ(fs::status(path_).permissions(), fs::perms(0640));
  struct stat now;
  ASSERT_EQ(stat(path_.c_str(), &now), 0);
  EXPECT_EQ(now.st_uid, owner);
  EXPECT_EQ(Names().size(), 1u);
}

TEST_F(AtomicFileTest, TheOldFileMayGoFirst) {
  ASSERT_TRUE(Make().DropOld().has_value()) << "there is none";
  WriteText(path_, "old");
  AtomicFile file = Make({.replace = true});
  Fill(file, "new");
  ASSERT_TRUE(file.DropOld().has_value());
  EXPECT_FALSE(fs::exists(path_));
  ASSERT_TRUE(file.Commit().has_value());
  EXPECT_EQ(Text(path_), "new");
}

TEST_F(AtomicFileTest, ALinkStaysALink) {
  WriteText(dir_ + "/target", "old");
  fs::create_symlink("target", path_);
  AtomicFile file = Make({.replace = true});
  Fill(file, "new");
  ASSERT_TRUE(file.Commit().has_value());
  EXPECT_TRUE(fs::is_symlink(path_));
  EXPECT_EQ(Text(dir_ + "/target"), "new");
}

TEST_F(AtomicFileTest, AFileInUseIsNotReplaced) {
  WriteText(path_, "old");
  auto reader = FileStore::Open(path_, {});
  ASSERT_TRUE(reader.has_value());
  EXPECT_NE(Refusal({.replace = true}).find("in use"), std::string::npos);
  reader->reset();
  Make({.replace = true});
}

TEST_F(AtomicFileTest, OnlyRegularFilesAreReplaced) {
  fs::create_directory(path_);
  EXPECT_EQ(Refusal({.replace = true}), "cannot replace '" + path_ + "': it is not a regular file");
  path_ = "/dev/null";
  EXPECT_EQ(Refusal({.replace = true}), "cannot replace '/dev/null': it is not a regular file");
  path_ = dir_ + "/";
  EXPECT_NE(Refusal(), "created");
}

TEST_F(AtomicFileTest, NoDirectoryNoFile) {
  auto file = AtomicFile::Create(dir_ + "/none/out.img", {});
  ASSERT_FALSE(file.has_value());
  EXPECT_EQ(file.error().errno_value(), ENOENT);
}

TEST_F(AtomicFileTest, LongNamesFit) {
  path_ = dir_ + "/" + std::string(255, 'n');
  AtomicFile file = Make();
  EXPECT_TRUE(file.Commit().has_value());
  EXPECT_TRUE(fs::exists(path_));
}

// A child makes a file, says so, and waits to be killed.
class KilledTest : public AtomicFileTest {
 protected:
  void KillChild(int signal) {
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
      UnlinkTemporariesOnSignals();
      AtomicFile file = Make();
      Fill(file, "half");
      if (chdir("/") != 0 || write(ready[1], "x", 1) != 1) _exit(1);
      while (true) pause();
    }
    char byte;
    ASSERT_EQ(read(ready[0], &byte, 1), 1);
    EXPECT_EQ(Names().size(), 1u);
    kill(child, signal);
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(WTERMSIG(status), signal) << "the shell sees what ended it";
    close(ready[0]);
    close(ready[1]);
  }
};

TEST_F(KilledTest, CatchableSignalsCleanUp) {
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) {
    KillChild(signal);
    EXPECT_TRUE(Names().empty()) << signal;
  }
}

TEST_F(KilledTest, SigkillLeavesOnlyTheTemporaryName) {
  KillChild(SIGKILL);
  ASSERT_EQ(Names().size(), 1u);
  EXPECT_EQ(Names()[0].find(".out.img.platter-"), 0u);
}

TEST_F(AtomicFileTest, AChildProcessDoesNotRemoveItsParentsFiles) {
  AtomicFile file = Make();
  pid_t child = fork();
  if (child == 0) {
    UnlinkTemporaries();
    _exit(0);
  }
  waitpid(child, nullptr, 0);
  EXPECT_EQ(Names().size(), 1u);
  UnlinkTemporaries();
  EXPECT_TRUE(Names().empty());
}

}  // namespace
}  // namespace platter
