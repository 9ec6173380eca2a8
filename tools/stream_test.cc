// Images through a pipe: nothing seeks, and nothing is put aside where it need not be.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "tools/interrupt.h"
#include "tools/platter_testing.h"

namespace platter {
namespace {

using testing_support::MustRun;

class StreamTest : public PlatterTest {
 protected:
  void SetUp() override {
    std::signal(SIGPIPE, SIG_IGN);
    const char* tmpdir = std::getenv("TMPDIR");
    if (tmpdir) tmpdir_ = tmpdir;
    // Whoever wants a temporary file fails.
    setenv("TMPDIR", File("no-such-folder").c_str(), 1);
  }
  void TearDown() override {
    if (tmpdir_.empty()) {
      unsetenv("TMPDIR");
    } else {
      setenv("TMPDIR", tmpdir_.c_str(), 1);
    }
  }

  // platter ARGS with standard output into the standard input of `reader`.
  Ran Pipe(std::vector<std::string> args, const std::string& reader) {
    std::fflush(stdout);
    FILE* pipe = popen(reader.c_str(), "w");
    int saved = dup(STDOUT_FILENO);
    dup2(fileno(pipe), STDOUT_FILENO);
    Ran ran = Platter(std::move(args));
    dup2(saved, STDOUT_FILENO);
    close(saved);
    int status = pclose(pipe);
    EXPECT_EQ(status, 0) << reader;
    return ran;
  }

  // Streams `source` as qcow2 with `options`, and has the result judged.
  void Stream(const std::string& source, const std::string& format,
              const std::vector<std::string>& options) {
    std::vector<std::string> args{"convert", "-f", format, "-O", "qcow2"};
    args.insert(args.end(), options.begin(), options.end());
    args.insert(args.end(), {source, "-"});
    Ran ran = Pipe(args, "cat > " + File("out.qcow2"));
    ASSERT_EQ(ran.code, 0) << ran.err;
    MustRun("qemu-img check -q " + File("out.qcow2"));
    MustRun("qemu-img compare -f " + format + " -F qcow2 " + source + " " + File("out.qcow2"));
    EXPECT_EQ(Platter({"check", "-q", File("out.qcow2")}).code, 0);
  }

  uint64_t SizeOf(const std::string& name) { return std::filesystem::file_size(File(name)); }

  std::string tmpdir_;
};

TEST_F(StreamTest, EveryGeometry) {
  std::string raw = RawSource();
  for (std::string options :
       {"cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=2M",
        "cluster_size=512,refcount_bits=1", "cluster_size=512,refcount_bits=64", "compat=0.10",
        "extended_l2=on", "extended_l2=on,cluster_size=16k", "compression_type=zstd"}) {
    SCOPED_TRACE(options);
    Stream(raw, "raw", {"-o", options});
  }
}

TEST_F(StreamTest, ItIsAsSmallAsAFile) {
  std::string raw = RawSource();
  Stream(raw, "raw", {});
  ASSERT_EQ(Platter({"convert", "-f", "raw", "-O", "qcow2", raw, File("file.qcow2")}).code, 0);
  // Both have one cluster for each that is not zeros, and metadata.
  EXPECT_LE(SizeOf("out.qcow2"), SizeOf("file.qcow2"));
}

TEST_F(StreamTest, ZerosAreWrittenWhereTheyAreAskedFor) {
  std::string raw = RawSource();
  Stream(raw, "raw", {"-S", "0"});
  EXPECT_GT(SizeOf("out.qcow2"), 8u << 20);
  EXPECT_EQ(MustRun("qemu-img map " + File("out.qcow2") + " | wc -l"), "2\n");
}

TEST_F(StreamTest, RaggedAndEmptyDisks) {
  MustRun("truncate -s 3000832 " + File("ragged.raw") +
          " && qemu-io -f raw -c 'write -P 7 2900k "
          "512' -c 'write -P 8 2999808 1024' " +
          File("ragged.raw"));
  for (std::string options : {"cluster_size=4k", "cluster_size=2M"}) {
    Stream(File("ragged.raw"), "raw", {"-o", options});
    Stream(File("ragged.raw"), "raw", {"-S", "0", "-o", options});
  }
  MustRun("truncate -s 0 " + File("none.raw") + " && truncate -s 1G " + File("empty.raw"));
  Stream(File("none.raw"), "raw", {});
  Stream(File("empty.raw"), "raw", {});
  EXPECT_LT(SizeOf("out.qcow2"), 512u * 1024);
}

TEST_F(StreamTest, FromChainsAndCompressedClusters) {
  std::string raw = RawSource();
  MustRun("qemu-img convert -c -f raw -O qcow2 " + raw + " " + File("base.qcow2") + " && cd " +
          File("") +
          " && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 12M && "
          "qemu-io -c 'write -P 3 1100k 100k' -c 'write -z 5000k 64k' -c 'write -P 4 11M 100k' "
          "top.qcow2");
  Stream(File("top.qcow2"), "qcow2", {});
  Stream(File("top.qcow2"), "qcow2", {"-o", "cluster_size=4k", "--threads", "4"});
}

// What it costs follows the data and not the disk.
TEST_F(StreamTest, ALargeSparseDisk) {
  MustRun("qemu-img create -q -f qcow2 " + File("large.qcow2") +
          " 20T && qemu-io -c 'write -P 1 19T 1M' -c 'write -P 2 7777777k 64k' -c 'write -P 3 10T "
          "5k' " +
          File("large.qcow2"));
  Stream(File("large.qcow2"), "qcow2", {});
  EXPECT_LT(SizeOf("out.qcow2"), 4u << 20);
}

TEST_F(StreamTest, ABrokenPipeIsAnError) {
  std::string raw = RawSource();
  Ran ran = Pipe({"convert", "-f", "raw", "-O", "qcow2", "-S", "0", raw, "-"},
                 "head -c 1000 > " + File("cut"));
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("output stream"), std::string::npos) << ran.err;
}

// Sizes of compressed clusters are known too late: by way of a temporary file.
TEST_F(StreamTest, CompressedImagesArePutAside) {
  std::string raw = RawSource();
  EXPECT_EQ(Pipe({"convert", "-c", "-f", "raw", "-O", "qcow2", raw, "-"}, "cat > /dev/null").code,
            1);
  std::filesystem::create_directory(File("no-such-folder"));
  Stream(raw, "raw", {"-c"});
  EXPECT_TRUE(std::filesystem::is_empty(File("no-such-folder")));
}

TEST_F(StreamTest, AnImageOfSeveralFilesIsRefused) {
  std::filesystem::create_directory(File("no-such-folder"));
  std::string raw = RawSource();
  Ran ran = Pipe({"convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat", raw, "-"},
                 "cat > " + File("out"));
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("data in another file"), std::string::npos) << ran.err;
  EXPECT_EQ(SizeOf("out"), 0u);
  EXPECT_TRUE(std::filesystem::is_empty(File("no-such-folder")));
}

TEST_F(StreamTest, CtrlCEndsTheWaitForStandardInput) {
  int input[2];
  ASSERT_EQ(pipe(input), 0);
  const pid_t child = fork();
  if (child == 0) {
    HandleInterrupts();
    dup2(input[0], STDIN_FILENO);
    _exit(Platter({"convert", "-f", "raw", "-O", "qcow2", "-", File("out.qcow2")}).code);
  }
  usleep(500'000);
  kill(child, SIGINT);
  int status = -1;
  for (int i = 0; i < 200 && waitpid(child, &status, WNOHANG) == 0; ++i) usleep(50'000);
  kill(child, SIGKILL);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 130) << status;
  close(input[0]);
  close(input[1]);
  EXPECT_FALSE(std::filesystem::exists(File("out.qcow2")));
}

}  // namespace
}  // namespace platter
