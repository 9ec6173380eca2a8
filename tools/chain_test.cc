// commit, rebase, stream, clone, dd, bench, snapshot --external and convert --resume in process.
#include <gtest/gtest.h>

#include <filesystem>

#include "tools/image_options.h"
#include "tools/platter_testing.h"
#include "tools/resume.h"

namespace platter {
namespace {

using testing_support::MustRun;

class ChainCommandsTest : public PlatterTest {
 protected:
  // base.qcow2 <- top.qcow2, each with something in it.
  void Build() {
    MustRun("cd " + File("") +
            " && qemu-img create -q -f qcow2 base.qcow2 16M && "
            "qemu-io -c 'write -P 1 0 4M' base.qcow2 && "
            "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 && "
            "qemu-io -c 'write -P 2 1M 1M' -c 'write -z 3M 512k' top.qcow2 && "
            "qemu-img convert -O raw top.qcow2 want.raw");
  }
  void ExpectWanted(const std::string& name) {
    MustRun("qemu-img compare -f raw -F qcow2 " + File("want.raw") + " " + File(name) +
            " && qemu-img check -q " + File(name));
  }
};

TEST_F(ChainCommandsTest, CommitSaysWhatQemuImgSays) {
  Build();
  MustRun("cp " + File("base.qcow2") + " " + File("b.qcow2") + "; cp " + File("top.qcow2") + " " +
          File("t.qcow2"));
  Ran ran = Platter({"commit", "-p", File("top.qcow2")});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_TRUE(ran.out.ends_with("Image committed.\n")) << ran.out;
  ExpectWanted("top.qcow2");
  ExpectWanted("base.qcow2");
  EXPECT_EQ(Platter({"commit", "-q", File("base.qcow2")}).code, 1);
  EXPECT_EQ(Platter({"commit", "-q", "-d", "-b", File("base.qcow2"), File("top.qcow2")}).out, "");
}

TEST_F(ChainCommandsTest, RebaseAndStream) {
  Build();
  MustRun("cp " + File("base.qcow2") + " " + File("other.qcow2") +
          " && qemu-io -c 'write -P 9 2M 4M' " + File("other.qcow2"));
  Ran ran = Platter({"rebase", "-b", "other.qcow2", "-F", "qcow2", File("top.qcow2")});
  ASSERT_EQ(ran.code, 0) << ran.err;
  ExpectWanted("top.qcow2");
  EXPECT_NE(MustRun("qemu-img info " + File("top.qcow2")).find("other.qcow2"), std::string::npos);
  EXPECT_EQ(Platter({"rebase", File("top.qcow2")}).code, 1) << "no parent was given";
  ran = Platter({"rebase", "-b", "", File("top.qcow2")});
  ASSERT_EQ(ran.code, 0) << ran.err;
  MustRun("rm " + File("other.qcow2"));
  ExpectWanted("top.qcow2");
  ran = Platter({"rebase", "-u", "-b", "gone.qcow2", "-F", "qcow2", File("top.qcow2")});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(MustRun("qemu-img info " + File("top.qcow2")).find("gone.qcow2"), std::string::npos);

  Build();
  ran = Platter({"stream", "-p", File("top.qcow2")});
  ASSERT_EQ(ran.code, 0) << ran.err;
  MustRun("rm " + File("base.qcow2"));
  ExpectWanted("top.qcow2");
}

TEST_F(ChainCommandsTest, StreamOfAnImageInUse) {
  Build();
  ImageOptions reader;
  StringConsole console;
  auto open = reader.Open(File("top.qcow2"), false, console);
  ASSERT_TRUE(open.has_value());
  Ran ran = Platter({"stream", File("top.qcow2")});
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("in use"), std::string::npos) << ran.err;
  ExpectWanted("top.qcow2");
}

TEST_F(ChainCommandsTest, ExternalSnapshotAndClones) {
  Build();
  Ran ran = Platter({"snapshot", "--external", "monday", File("top.qcow2")});
  ASSERT_EQ(ran.code, 0) << ran.err;
  ExpectWanted("top.qcow2");
  ExpectWanted("top.monday.qcow2");
  EXPECT_EQ(Platter({"snapshot", "--external", "monday", File("top.qcow2")}).code, 1);
  MustRun("mkdir " + File("guests"));
  ran = Platter({"clone", "-q", "-n", "12", File("top.qcow2"), File("guests")});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(MustRun("ls " + File("guests") + " | wc -l"), "12\n");
  MustRun("qemu-img check -q " + File("guests/top-07.qcow2"));
  ran = Platter({"clone", "--full", File("top.qcow2"), File("copy.qcow2")});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.out, "Made 1 clone.\n");
  ExpectWanted("copy.qcow2");
}

TEST_F(ChainCommandsTest, DdCountsAsDd) {
  std::string raw = RawSource();
  for (std::string operands : {"bs=1M count=2", "bs=1000 skip=1100", "bs=4k skip=250 count=100",
                               "bs=1M skip=100", "count=3", "bs=3M count=9"}) {
    std::vector<std::string> args{"dd", "-f", "raw", "--force", "if=" + raw, "of=" + File("ours")};
    std::istringstream split(operands);
    for (std::string word; split >> word;) args.push_back(word);
    Ran ran = Platter(args);
    ASSERT_EQ(ran.code, 0) << operands << ": " << ran.err;
    MustRun("dd status=none if=" + raw + " of=" + File("theirs") + " " + operands + " && cmp " +
            File("ours") + " " + File("theirs"));
  }
  EXPECT_EQ(Platter({"dd", "if=" + raw}).code, 1);
  EXPECT_EQ(Platter({"dd", "if=" + raw, "of=x", "seek=1"}).code, 1);
}

TEST_F(ChainCommandsTest, BenchSaysWhatQemuImgSays) {
  MustRun("qemu-img create -q -f qcow2 " + File("a.qcow2") + " 16M");
  const std::string arguments = "-w -c 300 -s 4k -S 12k -o 8k -d 8 --flush-interval 100 ";
  std::string theirs = MustRun("qemu-img bench " + arguments + File("a.qcow2"));
  std::vector<std::string> args{"bench"};
  std::istringstream split(arguments + File("a.qcow2"));
  for (std::string word; split >> word;) args.push_back(word);
  Ran ran = Platter(args);
  ASSERT_EQ(ran.code, 0) << ran.err;
  auto first_lines = [](const std::string& text) { return text.substr(0, text.find("Run")); };
  EXPECT_EQ(first_lines(ran.out), first_lines(theirs));
  EXPECT_NE(ran.out.find("Run completed in "), std::string::npos);
  MustRun("qemu-img check -q " + File("a.qcow2"));
  EXPECT_EQ(Platter({"bench", "-s", "32M", File("a.qcow2")}).code, 1);
}

class ResumeTest : public PlatterTest {};

TEST_F(ResumeTest, WithoutAJournalItBeginsAtTheBeginning) {
  const std::string source = RawSource(), out = File("out.qcow2");
  const PartialOutput files = PartialOutput::For(out);
  MustRun("echo nonsense > " + files.image);
  Ran ran = Platter({"convert", "--resume", "-q", "-f", "raw", "-O", "qcow2", source, out});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_FALSE(std::filesystem::exists(files.image));
  EXPECT_FALSE(std::filesystem::exists(files.journal));
  MustRun("qemu-img check -q " + out + " && qemu-img compare -f raw -F qcow2 " + source + " " +
          out);
}

TEST_F(ResumeTest, AKilledProgramIsTakenUp) {
  const std::string platter = "tools/platter";
  const std::string source = File("source.raw"), out = File("out.qcow2");
  MustRun("dd if=/dev/urandom of=" + source + " bs=1M count=200 status=none");
  const PartialOutput files = PartialOutput::For(out);
  // Slowly, and killed once something is in the journal.
  MustRun(platter + " convert --resume -q -r 100M -f raw -O qcow2 " + source + " " + out +
          " & pid=$!; for i in $(seq 100); do sleep 0.1; grep -q 'bytes [1-9]' " + files.journal +
          " && break; done; kill -9 $pid; wait $pid; true");
  ASSERT_TRUE(std::filesystem::exists(files.journal));
  ASSERT_FALSE(std::filesystem::exists(out));
  Ran ran = Platter({"convert", "--resume", "-f", "raw", "-O", "qcow2", source, out});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.err.find("going on at byte "), std::string::npos) << ran.err;
  MustRun("qemu-img check -q " + out + " && qemu-img compare -f raw -F qcow2 " + source + " " +
          out);
  auto hash = [](const std::string& path) { return Platter({"hash", path}).out.substr(0, 64); };
  ASSERT_EQ(Platter({"convert", "-q", "-f", "raw", "-O", "qcow2", source, File("whole")}).code, 0);
  EXPECT_EQ(hash(out), hash(File("whole")));
}

TEST_F(ResumeTest, AnotherSourceIsRefused) {
  const std::string source = RawSource(), out = File("out.raw");
  const PartialOutput files = PartialOutput::For(out);
  MustRun("touch " + files.image);
  Journal journal(files, "of something else\n");
  ASSERT_TRUE(journal.Save(123).has_value());
  EXPECT_EQ(*journal.Load(), std::optional<uint64_t>(123));
  Ran ran = Platter({"convert", "--resume", "-f", "raw", source, out});
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("another conversion"), std::string::npos) << ran.err;
  // A torn journal is none.
  MustRun("truncate -s -3 " + files.journal);
  EXPECT_EQ(*journal.Load(), std::optional<uint64_t>());
  ran = Platter({"convert", "--resume", "-f", "raw", source, out});
  EXPECT_EQ(ran.code, 0) << ran.err;
  MustRun("cmp " + source + " " + out);
  EXPECT_EQ(Platter({"convert", "--resume", "-n", "-f", "raw", source, out}).code, 1);
}

// One file read in two ways is two sources.
TEST_F(ResumeTest, AnotherReadingOfTheSourceIsRefused) {
  const std::string platter = "tools/platter";
  const std::string source = File("source.qcow2"), out = File("out.raw");
  MustRun("dd if=/dev/urandom of=" + File("r") +
          " bs=1M count=200 status=none && qemu-img convert "
          "-f raw -O qcow2 " +
          File("r") + " " + source);
  const PartialOutput files = PartialOutput::For(out);
  MustRun(platter + " convert --resume -q -r 100M " + source + " " + out +
          " & pid=$!; for i in $(seq 100); do sleep 0.1; grep -q 'bytes [1-9]' " + files.journal +
          " && break; done; kill -9 $pid; wait $pid; true");
  ASSERT_TRUE(std::filesystem::exists(files.journal));
  Ran ran = Platter({"convert", "--resume", "-q", "-f", "raw", source, out});
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("another conversion"), std::string::npos) << ran.err;
  ran = Platter({"convert", "--resume", "-q", "-f", "qcow2", source, out});
  EXPECT_EQ(ran.code, 0) << ran.err;
  MustRun("cmp " + File("r") + " " + out);
}

// --force replaces files, and none that somebody uses.
TEST_F(ResumeTest, WhatIsReplaced) {
  const std::string source = RawSource(), out = File("out.raw");
  MustRun("echo old > " + out + " && chmod 640 " + out + " && ln -s out.raw " + File("link"));
  auto resume = [&](const std::string& target) {
    return Platter({"convert", "--resume", "--force", "-q", "-f", "raw", source, target});
  };
  {
    DiskOptions options{.format = "raw"};
    options.file.writable = true;
    auto user = Disk::Open(out, options, Gate(GatePolicy{}), nullptr);
    ASSERT_TRUE(user.has_value()) << user.error().text();
    EXPECT_EQ(resume(out).code, 1);
    EXPECT_EQ(MustRun("cat " + out), "old\n");
  }
  Ran ran = resume(File("link"));
  ASSERT_EQ(ran.code, 0) << ran.err;
  MustRun("cmp " + source + " " + out + " && test -L " + File("link"));
  EXPECT_EQ(MustRun("stat -c %a " + out), "640\n");
  MustRun("mkfifo " + File("fifo"));
  ran = resume(File("fifo"));
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("regular file"), std::string::npos) << ran.err;
  MustRun("test -p " + File("fifo"));
}

}  // namespace
}  // namespace platter
