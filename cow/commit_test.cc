#include "cow/commit.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include "cow/create.h"
#include "cow/rebase.h"
#include "cow/set_parent.h"
#include "tests/interop/qemu.h"

namespace platter {
namespace {

using testing_support::MustRun;
using testing_support::Shell;

// Commit, rebase and stream of chains on disk, with QEMU as the judge of what they read as.
class ChainTest : public testing::Test {
 protected:
  std::string File(const std::string& name) { return folder_.File(name); }

  // An overlay by us, of formats that QEMU makes no overlays in as well.
  void Overlay(const std::string& name, const std::string& format, const std::string& parent,
               uint64_t size = 0) {
    NewImageOptions options{.format = format, .size_from_parent = size == 0};
    options.create.size = size;
    options.create.parent = Reference{Reference::kParent, parent, ""};
    auto image = NewImage::Create(File(name), options, gate_, nullptr);
    ASSERT_TRUE(image.has_value()) << image.error().text();
    ASSERT_TRUE((*image)->Commit().has_value());
  }

  void Put(const std::string& name, uint64_t at, uint64_t length, int value) {
    auto disk = Disk::Open(File(name), {.file = {.writable = true}}, gate_, nullptr);
    ASSERT_TRUE(disk.has_value()) << disk.error().text();
    std::vector<std::byte> bytes(length, static_cast<std::byte>(value));
    ASSERT_TRUE(Write(**disk, at, ConstBytes(bytes)).has_value());
    ASSERT_TRUE((*disk)->Flush().has_value());
  }
  void Drop(const std::string& name, Range range) {
    auto disk = Disk::Open(File(name), {.file = {.writable = true}}, gate_, nullptr);
    ASSERT_TRUE(disk.has_value()) << disk.error().text();
    ASSERT_TRUE(Zero(**disk, range, true).has_value());
    ASSERT_TRUE((*disk)->Flush().has_value());
  }

  std::vector<std::byte> Content(const std::string& name) {
    auto disk = Disk::Open(File(name), {}, gate_, nullptr);
    EXPECT_TRUE(disk.has_value()) << disk.error().text();
    if (!disk) return {};
    std::vector<std::byte> bytes((*disk)->info().size);
    auto read = Read(**disk, 0, Bytes(bytes));
    EXPECT_TRUE(read.has_value()) << read.error().text();
    return bytes;
  }

  // Bytes that the top layer itself holds.
  uint64_t OwnBytes(const std::string& name) {
    auto disk = Disk::Open(File(name), {}, gate_, nullptr);
    EXPECT_TRUE(disk.has_value());
    uint64_t sum = 0;
    for (Range rest{0, (*disk)->info().size}; !rest.empty();) {
      Extent extent;
      EXPECT_TRUE((*disk)->layer(0).Map(rest, std::span(&extent, 1)).has_value());
      if (extent.kind != Kind::kParent) sum += extent.guest.length;
      rest = Range::FromTo(extent.guest.end(), rest.end());
    }
    return sum;
  }

  void MustCommit(const std::string& name, const std::string& base = "", bool keep = false) {
    CommitOptions options;
    options.base = base;
    options.keep = keep;
    auto done = Commit(File(name), options, gate_, nullptr);
    ASSERT_TRUE(done.has_value()) << done.error().text();
  }

  testing_support::TempFolder folder_;
  Gate gate_{GatePolicy{}};
};

TEST_F(ChainTest, CommitMovesDataZerosAndDiscardsDown) {
  for (std::string format : {"qcow2", "vmdk", "vdi", "vhdx", "vpc"}) {
    SCOPED_TRACE(format);
    const std::string base = "base." + format, top = "top." + format;
    NewImageOptions create{.format = format, .replace = true};
    create.create.size = 64 * kMiB;
    auto image = NewImage::Create(File(base), create, gate_, nullptr);
    ASSERT_TRUE(image.has_value()) << image.error().text();
    ASSERT_TRUE((*image)->Commit().has_value());
    Put(base, kMiB, 8 * kMiB, 1);
    Overlay(top, format, base);
    Put(top, 3 * kMiB + 700, 5000, 2);
    Drop(top, {4 * kMiB, 2 * kMiB});
    Put(top, 40 * kMiB, 100, 3);
    const auto content = Content(top);
    MustCommit(top);
    EXPECT_EQ(Content(top), content);
    EXPECT_EQ(Content(base), content);
    EXPECT_EQ(OwnBytes(top), 0u);
    // The chain is sound for the next round: ids that change with the content are recorded.
    Put(top, 50 * kMiB, 100, 4);
    EXPECT_EQ(Content(top)[50 * kMiB], std::byte{4});
    MustCommit(top, "", /*keep=*/true);
    EXPECT_GT(OwnBytes(top), 0u);
    EXPECT_EQ(Content(base)[50 * kMiB], std::byte{4});
  }
}

TEST_F(ChainTest, CommitIntoAnAncestorOfAnotherFormat) {
  MustRun("truncate -s 3M " + File("base.raw"));
  MustRun("qemu-img create -q -f qcow2 -b base.raw -F raw " + File("mid.qcow2") + " 5M");
  MustRun("qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 " + File("top.qcow2") + " 8M");
  MustRun("qemu-io -c 'write -P 1 0 1M' -c 'write -P 2 4M 1M' " + File("mid.qcow2"));
  MustRun("qemu-io -c 'write -P 3 512k 1M' -c 'write -z 4M 64k' -c 'write -P 4 7M 4k' " +
          File("top.qcow2"));
  MustRun("qemu-img convert -O raw " + File("top.qcow2") + " " + File("want.raw"));
  MustCommit("top.qcow2", File("base.raw"));
  MustRun("cmp " + File("want.raw") + " " + File("base.raw"));
  MustRun("qemu-img compare -f raw -F qcow2 " + File("want.raw") + " " + File("top.qcow2"));
  MustRun("qemu-img check -q " + File("top.qcow2"));
  EXPECT_GT(OwnBytes("top.qcow2"), 0u) << "a base further down leaves the image as it is";
}

TEST_F(ChainTest, QemuCommitsWhatWeDoAndTheOtherWayRound) {
  for (bool ours : {true, false}) {
    MustRun("cd " + File("") +
            " && rm -f *.qcow2 && qemu-img create -q -f qcow2 b.qcow2 32M && "
            "qemu-io -c 'write -P 1 0 20M' b.qcow2 && "
            "qemu-img create -q -f qcow2 -o cluster_size=4k -b b.qcow2 -F qcow2 t.qcow2 && "
            "qemu-io -c 'write -P 2 1000k 3000k' -c 'discard 8M 1M' -c 'write -z 10M 77k' t.qcow2");
    MustRun("qemu-img convert -O raw " + File("t.qcow2") + " " + File("want.raw"));
    if (ours) {
      MustCommit("t.qcow2");
    } else {
      MustRun("qemu-img commit -q " + File("t.qcow2"));
    }
    for (std::string name : {"b.qcow2", "t.qcow2"}) {
      MustRun("qemu-img check -q " + File(name));
      MustRun("qemu-img compare -f raw " + File("want.raw") + " " + File(name));
      auto bytes = Content(name);
      EXPECT_EQ(bytes[1500 * kKiB], std::byte{2});
    }
    EXPECT_EQ(OwnBytes("t.qcow2"), 0u);
  }
}

TEST_F(ChainTest, CommitRefuses) {
  MustRun("qemu-img create -q -f qcow2 " + File("alone.qcow2") + " 1M");
  auto alone = Commit(File("alone.qcow2"), {}, gate_, nullptr);
  ASSERT_FALSE(alone.has_value());
  EXPECT_NE(alone.error().text().find("no parent"), std::string::npos) << alone.error().text();
  Overlay("top.qcow2", "qcow2", "alone.qcow2");
  CommitOptions elsewhere;
  elsewhere.base = File("top.qcow2");
  EXPECT_FALSE(Commit(File("top.qcow2"), elsewhere, gate_, nullptr).has_value());
  elsewhere.base = "unknown";
  EXPECT_FALSE(Commit(File("top.qcow2"), elsewhere, gate_, nullptr).has_value());
  // In use: the base by a reader that relies on it.
  auto reader = Disk::Open(File("alone.qcow2"), {}, gate_, nullptr);
  ASSERT_TRUE(reader.has_value());
  auto used = Commit(File("top.qcow2"), {}, gate_, nullptr);
  ASSERT_FALSE(used.has_value());
  EXPECT_EQ(used.error().code(), Code::kRefused) << used.error().text();
}

class RebaseTest : public ChainTest {
 protected:
  // old and new differ in some parts; mid is between old and top.
  void Build(const std::string& format) {
    for (std::string name : {"old", "new"}) {
      NewImageOptions create{.format = format, .replace = true};
      create.create.size = name == "old" ? 40 * kMiB : 56 * kMiB;
      auto image = NewImage::Create(File(name + "." + format), create, gate_, nullptr);
      ASSERT_TRUE(image.has_value()) << image.error().text();
      ASSERT_TRUE((*image)->Commit().has_value());
      Put(name + "." + format, 0, 6 * kMiB, 1);
    }
    Put("old." + format, 5 * kMiB + 100, 3000, 2);
    Put("new." + format, 20 * kMiB, 3 * kMiB, 3);
    Put("new." + format, 50 * kMiB, 3 * kMiB, 4);  // past the end of the old one
    Overlay("mid." + format, format, "old." + format);
    Put("mid." + format, 10 * kMiB + 512, 70'000, 5);
    Overlay("top." + format, format, "mid." + format, 64 * kMiB);
    Put("top." + format, 21 * kMiB, 1000, 6);
    Drop("top." + format, {2 * kMiB, 2 * kMiB});
  }

  Result<> Go(const std::string& name, const std::string& parent, bool unsafe = false) {
    RebaseOptions options;
    options.unsafe = unsafe;
    if (!parent.empty()) options.parent = Reference{Reference::kParent, parent, ""};
    return Rebase(File(name), options, gate_, nullptr);
  }
};

TEST_F(RebaseTest, KeepsTheContentOverAnotherParent) {
  for (std::string format : {"qcow2", "vmdk", "vdi", "vhdx", "vpc"}) {
    SCOPED_TRACE(format);
    Build(format);
    const auto content = Content("top." + format);
    auto done = Go("top." + format, "new." + format);
    ASSERT_TRUE(done.has_value()) << done.error().text();
    EXPECT_EQ(Content("top." + format), content);
    auto disk = Disk::Open(File("top." + format), {}, gate_, nullptr);
    ASSERT_TRUE(disk.has_value()) << disk.error().text();
    ASSERT_EQ((*disk)->depth(), 2u);
    EXPECT_TRUE((*disk)->path(1).ends_with("new." + format)) << (*disk)->path(1);
    auto report = (*FindFormat(format))->check;
    ASSERT_TRUE(report != nullptr);
  }
  MustRun("qemu-img check -q " + File("top.qcow2"));
}

TEST_F(RebaseTest, FlattensAndStreams) {
  for (std::string format : {"qcow2", "vmdk", "vdi"}) {
    SCOPED_TRACE(format);
    Build(format);
    const std::string top = "top." + format;
    const auto content = Content(top);
    auto streamed = Stream(File(top), File("old." + format), {}, gate_, nullptr);
    ASSERT_TRUE(streamed.has_value()) << streamed.error().text();
    EXPECT_EQ(Content(top), content);
    MustRun("rm " + File("mid." + format));
    EXPECT_EQ(Content(top), content);
    EXPECT_LT(OwnBytes(top), 8 * kMiB) << "what the parent that stays holds is not copied";
    auto flat = Stream(File(top), "", {}, gate_, nullptr);
    ASSERT_TRUE(flat.has_value()) << flat.error().text();
    MustRun("rm " + File("old." + format));
    EXPECT_EQ(Content(top), content);
  }
  MustRun("qemu-img check -q " + File("top.qcow2"));
}

TEST_F(RebaseTest, QemuRebasesWhatWeDoAndTheOtherWayRound) {
  for (bool ours : {true, false}) {
    MustRun("rm -f " + File("") + "/*");
    Build("qcow2");
    MustRun("qemu-img convert -O raw " + File("top.qcow2") + " " + File("want.raw"));
    if (ours) {
      auto done = Go("top.qcow2", "new.qcow2");
      ASSERT_TRUE(done.has_value()) << done.error().text();
    } else {
      MustRun("cd " + File("") + " && qemu-img rebase -b new.qcow2 -F qcow2 top.qcow2");
    }
    MustRun("qemu-img check -q " + File("top.qcow2"));
    MustRun("qemu-img compare -f raw " + File("want.raw") + " " + File("top.qcow2"));
    EXPECT_NE(MustRun("qemu-img info " + File("top.qcow2")).find("new.qcow2"), std::string::npos);
    MustRun("qemu-img convert -O raw " + File("want.raw") + " " + File("copy.raw"));
    EXPECT_EQ(Content("top.qcow2"), Content("copy.raw"));
  }
}

TEST_F(RebaseTest, AnImageWithoutParentGetsOneAndReadsTheSame) {
  Build("qcow2");
  MustRun("qemu-img create -q -f qcow2 " + File("alone.qcow2") + " 64M");
  Put("alone.qcow2", 30 * kMiB, 4096, 9);
  Drop("alone.qcow2", {kMiB, kMiB});
  const auto content = Content("alone.qcow2");
  auto done = Go("alone.qcow2", "new.qcow2");
  ASSERT_TRUE(done.has_value()) << done.error().text();
  EXPECT_EQ(Content("alone.qcow2"), content);
  MustRun("qemu-img check -q " + File("alone.qcow2"));
}

TEST_F(RebaseTest, UnsafeChangesTheRecordOnly) {
  Build("qcow2");
  const uint64_t own = OwnBytes("top.qcow2");
  MustRun("mv " + File("mid.qcow2") + " " + File("moved.qcow2"));
  auto done = Go("top.qcow2", "moved.qcow2", /*unsafe=*/true);
  ASSERT_TRUE(done.has_value()) << done.error().text();
  EXPECT_EQ(OwnBytes("top.qcow2"), own);
}

TEST_F(RebaseTest, Refuses) {
  Build("qcow2");
  // A parent that stands on the image itself.
  Overlay("child.qcow2", "qcow2", "top.qcow2");
  const auto content = Content("child.qcow2");
  EXPECT_FALSE(Go("mid.qcow2", "child.qcow2").has_value());
  auto itself = Go("top.qcow2", "top.qcow2", /*unsafe=*/true);
  ASSERT_FALSE(itself.has_value());
  EXPECT_NE(itself.error().text().find("its own parent"), std::string::npos);
  MustRun("qemu-img snapshot -c s " + File("top.qcow2"));
  auto snapshots = Go("top.qcow2", "new.qcow2");
  ASSERT_FALSE(snapshots.has_value());
  EXPECT_NE(snapshots.error().text().find("snapshots"), std::string::npos);
  MustRun("truncate -s 1M " + File("raw"));
  EXPECT_FALSE(Rebase(File("raw"), {.open = {.format = "raw"}}, gate_, nullptr).has_value());
  EXPECT_EQ(Content("child.qcow2"), content);
}

}  // namespace
}  // namespace platter
