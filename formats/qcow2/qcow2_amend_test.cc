// Options of an image that is there, judged by QEMU.
#include "formats/qcow2/qcow2_amend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "formats/qcow2/qcow2_create.h"
#include "formats/qcow2/qcow2_layer.h"
#include "formats/qcow2/qcow2_subjects_testing.h"
#include "formats/qcow2/qcow2_testing.h"
#include "io/crash_store.h"
#include "io/engine/engine.h"
#include "io/memory_store.h"
#include "io/testing/wrapper_store.h"
#include "tests/model/random.h"

namespace platter::qcow2 {
namespace {

using testing::HasSubstr;

class AmendTest : public QemuTest {
 protected:
  void Run(const std::string& command) {
    Outcome outcome = Shell("cd " + Path("") + " && " + command);
    ASSERT_EQ(outcome.exit_code, 0) << command << ": " << outcome.output;
  }
  std::string Info() { return Shell("qemu-img info " + Path("a")).output; }
  Result<> Amend(const std::string& options) {
    auto file = OpenFile("a");
    return AmendQcow2(*file, {.writable = true}, {.options = OptionsOf(options)});
  }
  std::string Refusal(const std::string& options) {
    auto amended = Amend(options);
    return amended ? "done" : amended.error().text();
  }
};

TEST_F(AmendTest, UpAndDown) {
  Run("qemu-img create -q -f qcow2 -o compat=0.10 a 8M && qemu-io -c 'write -P 7 1M 2M' a && "
      "cp a was");
  auto step = [&](const std::string& options, const std::string& seen) {
    SCOPED_TRACE(options);
    auto amended = Amend(options);
    ASSERT_TRUE(amended) << amended.error().text();
    EXPECT_THAT(Info(), HasSubstr(seen));
    ExpectClean("a", options);
    Run("qemu-img compare a was && cp a b && qemu-io -c 'write -P 8 5M 1M' b && qemu-img check b");
  };
  step("compat=1.1", "compat: 1.1");
  step("lazy_refcounts=on", "lazy refcounts: true");
  step("refcount_bits=64", "refcount bits: 64");
  step("refcount_bits=1", "refcount bits: 1\n");
  EXPECT_THAT(Refusal("compat=0.10"), HasSubstr("refcounts other than 16 bits"));
  step("compat=v2,refcount_bits=16", "compat: 0.10");
  step("compat=v3,refcount_bits=2,lazy_refcounts=off", "refcount bits: 2");
}

TEST_F(AmendTest, TheParent) {
  Run("qemu-img create -q -f raw base 8M && qemu-img create -q -f qcow2 a 8M");
  ASSERT_TRUE(Amend("backing_file=base,backing_fmt=raw"));
  EXPECT_THAT(Info(), HasSubstr("backing file: base"));
  EXPECT_THAT(Info(), HasSubstr("backing file format: raw"));
  const std::string longer(600, 'x');
  ASSERT_TRUE(Amend("backing_file=" + longer));
  EXPECT_THAT(Shell("qemu-img info -U " + Path("a")).output, HasSubstr(longer));
  ASSERT_TRUE(Amend("backing_file="));
  EXPECT_THAT(Info(), testing::Not(HasSubstr("backing file")));
  ExpectClean("a", "parent");
}

TEST_F(AmendTest, Refusals) {
  Run("qemu-img create -q -f qcow2 a 8M && qemu-io -c 'write 0 64k' a && qemu-img snapshot -c s a "
      "&& "
      "qemu-img snapshot -c t a");
  EXPECT_THAT(Refusal("refcount_bits=1"), HasSubstr("used 3 times"));
  EXPECT_THAT(Refusal("refcount_bits=3"), HasSubstr("power of two"));
  EXPECT_THAT(Refusal("cluster_size=4k"), HasSubstr("cluster_size"));
  EXPECT_THAT(Refusal("encrypt.state=active"), HasSubstr("not encrypted"));
  Run("qemu-io -c 'write -z 0 64k' a");
  EXPECT_THAT(Refusal("compat=0.10"), HasSubstr("zero clusters"));
  Run("qemu-img create -q -f qcow2 a 8M && qemu-img bitmap --add a b");
  EXPECT_THAT(Refusal("compat=0.10"), HasSubstr("bitmaps"));
  ExpectClean("a", "refused");
}

TEST_F(AmendTest, KeySlots) {
  const Secret first(AsBytes(std::string_view("one"))), second(AsBytes(std::string_view("two")));
  Create("a", kMiB, {{"encrypt.format", "luks"}, {"encrypt.iter-time", "10"}}, &first);
  auto opens = [&](const Secret& secret) {
    return OpenQcow2(OpenFile("a"), {.secret = &secret}).has_value();
  };
  auto amend = [&](const std::string& options, const Secret* secret, const Secret* fresh,
                   const Secret* old) -> Result<> {
    auto file = OpenFile("a");
    return AmendQcow2(*file, {.writable = true, .secret = secret},
                      {.options = OptionsOf(options), .new_secret = fresh, .old_secret = old});
  };
  auto added = amend("encrypt.state=active,encrypt.iter-time=10", &first, &second, nullptr);
  ASSERT_TRUE(added) << added.error().text();
  EXPECT_TRUE(opens(first) && opens(second));
  Run("qemu-io --object secret,id=s,data=two -c 'read 0 64k' "
      "--image-opts driver=qcow2,file.filename=a,encrypt.key-secret=s | grep -q 'read 65536'");
  EXPECT_EQ(
      amend("encrypt.state=active,encrypt.keyslot=1", &first, &second, nullptr).error().code(),
      Code::kRefused);
  EXPECT_EQ(amend("encrypt.state=active", nullptr, &second, nullptr).error().code(),
            Code::kRefused);
  ASSERT_TRUE(amend("encrypt.state=inactive", nullptr, nullptr, &first));
  EXPECT_FALSE(opens(first));
  EXPECT_TRUE(opens(second));
  EXPECT_EQ(amend("encrypt.state=inactive", nullptr, nullptr, &second).error().code(),
            Code::kRefused);
  EXPECT_EQ(
      amend("encrypt.state=inactive,encrypt.keyslot=1", nullptr, nullptr, nullptr).error().code(),
      Code::kRefused);
  EXPECT_TRUE(opens(second));
  Run("qemu-img check --object secret,id=s,data=two --image-opts "
      "driver=qcow2,file.filename=a,encrypt.key-secret=s");
}

TEST(AmendCrash, BeforeOrAfterAtEveryPowerCut) {
  MemoryStore image;
  constexpr uint64_t kSize = 300 * kKiB;
  ASSERT_TRUE(
      CreateQcow2(image, {.size = kSize, .options = OptionsOf("cluster_size=512,compat=v2")}));
  std::vector<std::byte> bytes(kSize);
  {
    auto layer = OpenQcow2(std::make_unique<WrapperStore>(image), {.writable = true});
    model::Random random(1);
    random.Fill(std::span(bytes).first(200'000));
    ASSERT_TRUE(Write(**layer, 0, ConstBytes(bytes)));
  }
  CrashRecorder recorder;
  {
    auto store = recorder.NewStore(image);
    auto amended = AmendQcow2(*store, {.writable = true},
                              {.options = OptionsOf("compat=v3,refcount_bits=64")});
    ASSERT_TRUE(amended) << amended.error().text();
  }
  for (uint64_t cut = 0; cut <= recorder.boundary(); ++cut) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      SCOPED_TRACE(fmt::format("cut {} of {} seed {}", cut, recorder.boundary(), seed));
      auto disk = recorder.Crash(cut, seed);
      auto sound = IsSound(*disk);
      ASSERT_TRUE(sound) << sound.error().text();
      auto layer = OpenQcow2(std::make_unique<WrapperStore>(*disk), {.writable = true});
      ASSERT_TRUE(layer) << layer.error().text();
      std::vector<std::byte> now(kSize);
      ASSERT_TRUE(Read(**layer, 0, Bytes(now)));
      ASSERT_EQ(now, bytes);
    }
  }
}

}  // namespace
}  // namespace platter::qcow2
