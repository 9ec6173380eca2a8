#include "io/file_lock.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "io/open_file.h"
#include "tests/interop/qemu.h"

namespace platter {
namespace {

// A running qemu-io that has done what its first command says, or failed to open its image.
class QemuIo {
 public:
  QemuIo(std::vector<std::string> arguments, const std::string& command) {
    arguments.insert(arguments.begin(), "qemu-io");
    int in[2], out[2];
    if (pipe(in) != 0 || pipe(out) != 0) abort();
    child_ = fork();
    if (child_ == 0) {
      dup2(in[0], 0);
      dup2(out[1], 1);
      dup2(out[1], 2);
      for (int fd : {in[0], in[1], out[0], out[1]}) close(fd);
      std::vector<char*> argv;
      for (auto& argument : arguments) argv.push_back(argument.data());
      argv.push_back(nullptr);
      execvp(argv[0], argv.data());
      static constexpr char kMissing[] = "qemu-io is missing: apt-get install qemu-utils\n";
      (void)!write(1, kMissing, sizeof kMissing - 1);
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    stdin_ = in[1];
    (void)!write(stdin_, (command + "\n").data(), command.size() + 1);
    char part[512];
    for (ssize_t count; output_.find("512/512") == std::string::npos &&
                        (count = read(out[0], part, sizeof part)) > 0;) {
      output_.append(part, static_cast<size_t>(count));
    }
    close(out[0]);
  }
  ~QemuIo() { Close(); }
  void Close() {
    if (stdin_ < 0) return;
    close(stdin_);
    stdin_ = -1;
    waitpid(child_, nullptr, 0);
  }
  bool open() const { return output_.find("512/512") != std::string::npos; }
  const std::string& output() const { return output_; }

 private:
  pid_t child_;
  int stdin_;
  std::string output_;
};

class FileLockTest : public testing::Test {
 protected:
  FileLockTest() {
    signal(SIGPIPE, SIG_IGN);
    std::string pattern = testing::TempDir() + "file_lock_XXXXXX";
    dir_ = mkdtemp(pattern.data());
    image_ = dir_ + "/a.qcow2";
    testing_support::MustRun("qemu-img create -q -f qcow2 " + image_ + " 1M");
  }
  ~FileLockTest() override { std::filesystem::remove_all(dir_); }

  auto Open(bool writable, bool force_share = false, bool lock = true) {
    return OpenFileStore(image_, {.writable = writable, .lock = lock, .force_share = force_share});
  }

  std::string dir_, image_;
};

TEST_F(FileLockTest, AWritingQemuHoldsUsOff) {
  QemuIo qemu({"-f", "qcow2", image_}, "write 0 512");
  ASSERT_TRUE(qemu.open()) << qemu.output();
  auto writer = Open(true);
  ASSERT_FALSE(writer.has_value());
  EXPECT_EQ(writer.error().code(), Code::kRefused);
  EXPECT_EQ(writer.error().text(), "'" + image_ +
                                       "' is in use by another program (QEMU's lock, byte 201): "
                                       "close it");
  auto reader = Open(false);
  ASSERT_FALSE(reader.has_value());
  EXPECT_EQ(reader.error().text(), "'" + image_ +
                                       "' is in use by another program (QEMU's lock, byte 101): "
                                       "close it, or use --force-share to read it all the same");
  EXPECT_TRUE(Open(false, true).has_value());
  EXPECT_TRUE(Open(true, false, false).has_value());
  qemu.Close();
  EXPECT_TRUE(Open(true).has_value());
}

// qemu-io that writes a raw image lets others resize and write; our reader minds all the same.
TEST_F(FileLockTest, AWritingQemuOnRawHoldsReadersOff) {
  QemuIo qemu({"-f", "raw", image_}, "write 0 512");
  ASSERT_TRUE(qemu.open()) << qemu.output();
  EXPECT_FALSE(Open(false).has_value());
  EXPECT_FALSE(Open(true).has_value());
}

TEST_F(FileLockTest, AReadingQemuSharesWithReaders) {
  QemuIo qemu({"-r", "-f", "qcow2", image_}, "read 0 512");
  ASSERT_TRUE(qemu.open()) << qemu.output();
  EXPECT_TRUE(Open(false).has_value());
  EXPECT_FALSE(Open(true).has_value());
}

TEST_F(FileLockTest, OurWriterHoldsQemuOff) {
  auto writer = Open(true);
  ASSERT_TRUE(writer.has_value()) << writer.error().text();
  QemuIo write({"-f", "qcow2", image_}, "write 0 512");
  EXPECT_FALSE(write.open());
  EXPECT_NE(write.output().find("Failed to get \"write\" lock"), std::string::npos)
      << write.output();
  QemuIo raw({"-f", "raw", image_}, "write 0 512");
  EXPECT_FALSE(raw.open()) << raw.output();
  QemuIo read({"-r", "-f", "qcow2", image_}, "read 0 512");
  EXPECT_FALSE(read.open());
  EXPECT_NE(read.output().find("Failed to get shared \"write\" lock"), std::string::npos)
      << read.output();
  QemuIo shared({"-r", "-U", "-f", "qcow2", image_}, "read 0 512");
  EXPECT_TRUE(shared.open()) << shared.output();
  writer->reset();
  QemuIo after({"-f", "qcow2", image_}, "write 0 512");
  EXPECT_TRUE(after.open()) << after.output();
}

TEST_F(FileLockTest, OurReaderHoldsWritersOffAndSharesWithReaders) {
  auto reader = Open(false);
  ASSERT_TRUE(reader.has_value());
  QemuIo write({"-f", "qcow2", image_}, "write 0 512");
  EXPECT_FALSE(write.open()) << write.output();
  QemuIo read({"-r", "-f", "qcow2", image_}, "read 0 512");
  EXPECT_TRUE(read.open()) << read.output();
}

TEST_F(FileLockTest, OurselvesAmongOurselves) {
  {
    auto one = Open(false), two = Open(false);
    EXPECT_TRUE(one.has_value() && two.has_value());
    EXPECT_FALSE(Open(true).has_value());
  }
  auto writer = Open(true);
  EXPECT_TRUE(writer.has_value()) << "a refused writer left nothing locked";
  EXPECT_FALSE(Open(true).has_value());
  EXPECT_FALSE(Open(false).has_value());
  EXPECT_TRUE(Open(false, true).has_value());
}

TEST_F(FileLockTest, WithoutLocksNobodyIsHeldOff) {
  // No file system here lacks locks; a descriptor without any answers like one (an error that is
  // no conflict).
  EXPECT_TRUE(LockImage(-1, LockMode::kWriter, "x").has_value());
}

}  // namespace
}  // namespace platter
