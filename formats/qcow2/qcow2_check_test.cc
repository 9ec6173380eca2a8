// Every kind of damage, one at a time: what the check says of it, that qemu-img puts the image in
// the same class, and what a repair makes of it.
#include "formats/qcow2/qcow2_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "formats/qcow2/qcow2_damage_testing.h"
#include "io/memory_store.h"

namespace platter::qcow2 {
namespace {

using testing::HasSubstr;

constexpr uint64_t kCluster = 65536;

// The image that is damaged: header, refcount table, refcount block, L1 table and L2 table in
// clusters 0 to 4, data of guest 0, 0x10000 and 0x20000 in clusters 5 to 7.
constexpr uint64_t kData = 5;

class CheckTest : public DamageTest {
 protected:
  void Damage(const std::function<void(Patient&)>& damage, const std::string& options = "") {
    Make("a", options, "1M", {"write -P 1 0 192k"});
    Patient patient = Load("a");
    ASSERT_EQ(patient.Host(0), kData * kCluster) << "the layout has changed: mend this test";
    damage(patient);
    Save("a", patient);
  }

  // Checks, expects qemu-img's class and `text` among the findings.
  CheckReport Expect(int status, const std::string& text) {
    CheckReport report = Check("a");
    EXPECT_EQ(StatusOf(report), status) << Text(report);
    EXPECT_EQ(Judge("a").status, status) << text;
    EXPECT_THAT(Text(report), HasSubstr(text));
    return report;
  }

  // Repairs all, and expects us and qemu-img to be content, with the guest's view unchanged.
  CheckReport ExpectMended(CheckOptions::Repair mode = CheckOptions::kAll) {
    std::string before = Content("a");
    CheckReport report = Check("a", mode);
    EXPECT_EQ(StatusOf(report), 0) << Text(report);
    EXPECT_GT(report.leaks_fixed + report.corruptions_fixed, 0u);
    EXPECT_EQ(Judge("a").status, 0);
    EXPECT_EQ(StatusOf(Check("a")), 0);
    if (!before.empty()) {
      EXPECT_EQ(Content("a"), before);
    }
    return report;
  }
};

TEST_F(CheckTest, StatisticsAreThoseOfQemuImg) {
  const std::vector<std::string> writes = {"write -P 1 100k 300k", "write -P 2 600k 64k",
                                           "write -P 3 512k 64k", "write -z 128k 64k"};
  for (std::string options :
       {"", "compat=0.10", "cluster_size=512", "cluster_size=2M", "refcount_bits=1",
        "refcount_bits=64", "extended_l2=on", "lazy_refcounts=on", "compression_type=zstd"}) {
    Make("a", options, "5M", writes);
    Shell(fmt::format("qemu-io -c 'write -P 5 -c 2M 2M' {}", Path("a")));
    if (options != "refcount_bits=1") {
      Shell(fmt::format("qemu-img snapshot -c s {0} && qemu-io -c 'write 64k 64k' {0}", Path("a")));
    }
    CheckReport report = Check("a");
    Verdict verdict = Judge("a");
    EXPECT_EQ(StatusOf(report), 0) << options << "\n" << Text(report);
    EXPECT_EQ(verdict.status, 0) << options;
    EXPECT_EQ(report.image_end, verdict.image_end) << options;
    EXPECT_EQ(report.total_units, verdict.total) << options;
    EXPECT_EQ(report.allocated_units, verdict.allocated) << options;
    EXPECT_EQ(report.compressed_units, verdict.compressed) << options;
    EXPECT_EQ(report.fragmented_units, verdict.fragmented) << options;
  }
}

TEST_F(CheckTest, EncryptedImagesAndDataFilesAreClean) {
  Outcome made = Shell(fmt::format(
      "printf secret > {0} && qemu-img create -q -f qcow2 --object secret,id=s,file={0} "
      "-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 {1} 1M",
      Path("key"), Path("a")));
  ASSERT_EQ(made.exit_code, 0) << made.output;
  EXPECT_EQ(StatusOf(Check("a")), 0) << Text(Check("a"));
  Make("b", "data_file=" + Path("b.data"), "1M", {"write 0 128k"});
  CheckReport report = Check("b");
  EXPECT_EQ(StatusOf(report), 0) << Text(report);
  EXPECT_EQ(report.allocated_units, 2u);
}

TEST_F(CheckTest, Leak) {
  Damage([](Patient& p) { p.SetRefcount(kData + 1, 2), p.Set64(p.L2Entry(1), p.Host(1)); });
  CheckReport report = Expect(3, "cluster 0x60000: refcount 2, but 1 reference (leaked)");
  EXPECT_EQ(report.leaks, 1u);
  EXPECT_EQ(ExpectMended(CheckOptions::kLeaks).leaks_fixed, 1u);
}

TEST_F(CheckTest, LeaksInARowAreOneFindingCountedEach) {
  Damage([](Patient& p) {
    for (uint64_t i = 0; i < 3; ++i) p.Set64(p.L2Entry(i), 0);
  });
  EXPECT_EQ(Expect(3, "clusters 0x50000 to 0x70000 (3): refcount 1, but 0 refer").leaks, 3u);
  EXPECT_EQ(ExpectMended().leaks_fixed, 3u);
}

TEST_F(CheckTest, RefcountTooLow) {
  Damage([](Patient& p) { p.SetRefcount(kData, 0); });
  CheckReport report = Expect(2, "cluster 0x50000: refcount 0, but 1 reference");
  EXPECT_EQ(report.corruptions, 2u) << "the copied flag, too";
  EXPECT_EQ(ExpectMended().corruptions_fixed, 2u);
}

TEST_F(CheckTest, LeakRepairLeavesCorruptionsAlone) {
  Damage([](Patient& p) { p.SetRefcount(kData, 0), p.SetRefcount(kData + 1, 3); });
  CheckReport report = Check("a", CheckOptions::kLeaks);
  EXPECT_EQ(report.leaks_fixed, 1u);
  EXPECT_EQ(report.corruptions_fixed, 0u);
  EXPECT_EQ(StatusOf(report), 2) << Text(report);
  EXPECT_EQ(Load("a").Refcount(kData), 0u);
}

TEST_F(CheckTest, CopiedFlagOfDataAndTables) {
  Damage([](Patient& p) {
    p.Set64(p.L2Entry(1), p.Host(1));
    p.Set64(p.L1Entry(0), p.Get64(p.L1Entry(0)) & ~kCopied);
  });
  Expect(2,
         "entry 1 (guest 0x10000): \"copied\" flag is clear, but the refcount of cluster 0x60000 "
         "is 1");
  EXPECT_THAT(Text(Check("a")),
              HasSubstr("L1 table at 0x30000: entry 0: \"copied\" flag is clear"));
  EXPECT_EQ(ExpectMended().corruptions_fixed, 2u);
}

TEST_F(CheckTest, CrossLinkedDataNamesBothOwners) {
  Damage([](Patient& p) { p.Set64(p.L2Entry(1), p.Get64(p.L2Entry(0))); });
  Expect(2,
         "cluster 0x50000: data of guest 0x0 and data of guest 0x10000 (refcount 1, but 2 "
         "references)");
  ExpectMended();
  EXPECT_EQ(Load("a").Refcount(kData), 2u);
}

TEST_F(CheckTest, DataInAMetadataClusterStaysACorruption) {
  Damage([](Patient& p) { p.Set64(p.L2Entry(1), p.header().l1_offset | kCopied); });
  Expect(2, "cluster 0x30000: L1 table at 0x30000 and data of guest 0x10000 overlap");
  CheckReport report = Check("a", CheckOptions::kAll);
  EXPECT_EQ(report.corruptions, 1u) << Text(report);
  EXPECT_EQ(Load("a").Refcount(3), 2u) << "so that neither is freed";
}

TEST_F(CheckTest, EntriesThatCannotBeMendedStayAsTheyAre) {
  struct Case {
    uint64_t entry;
    std::string text;
  };
  for (const Case& damage :
       {Case{kCopied | 0x7000000000, "past the end of the file (offset 0x7000000000"},
        Case{kCopied | 0x50200, "not aligned"}, Case{kCopied | 0x60008, "reserved bits 0x8"},
        Case{kCompressed | 0x3fffffffffff0000, "past the end of the file"}}) {
    Damage([&](Patient& p) { p.Set64(p.L2Entry(1), damage.entry); });
    Expect(2, damage.text);
    CheckReport report = Check("a", CheckOptions::kAll);
    EXPECT_EQ(StatusOf(report), 2) << Text(report);
    Patient after = Load("a");
    EXPECT_EQ(after.Get64(after.L2Entry(1)), damage.entry);
  }
}

TEST_F(CheckTest, CompressedWithCopiedFlag) {
  Make("a", "", "1M", {"write -c -P 7 0 64k"});
  Patient patient = Load("a");
  patient.Set64(patient.L2Entry(0), patient.Get64(patient.L2Entry(0)) | kCopied);
  Save("a", patient);
  Expect(2, "compressed, with the \"copied\" flag");
  ExpectMended();
}

TEST_F(CheckTest, LostTablesKeepTheirDataFromBeingFreed) {
  for (uint64_t entry : {uint64_t{0x40200}, uint64_t{0x7000000000}, uint64_t{0}}) {
    Damage([&](Patient& p) { p.Set64(p.L1Entry(0), entry | kCopied); });
    Expect(2, "L1 entry 0");
    CheckReport report = Check("a", CheckOptions::kAll);
    EXPECT_EQ(StatusOf(report), 2) << Text(report);
    EXPECT_EQ(report.leaks_fixed, 0u);
    EXPECT_EQ(Load("a").Refcount(kData), 1u);
  }
}

TEST_F(CheckTest, RefcountStructuresAreRebuilt) {
  const std::vector<std::pair<std::function<void(Patient&)>, std::string>> cases = {
      {[](Patient& p) { p.Set64(p.RefcountTableEntry(0), 0); }, "refcount 0, but 1 reference"},
      {[](Patient& p) { p.Set64(p.RefcountTableEntry(0), 0x20001); }, "reserved bits are set"},
      {[](Patient& p) { p.Set64(p.RefcountTableEntry(0), 0x20200); }, "not aligned"},
      {[](Patient& p) { p.Set64(p.RefcountTableEntry(1), 0x7000000000); }, "past the end"},
      {[](Patient& p) { p.Set64(p.RefcountTableEntry(1), 0x20000); },
       "refcount block 0 at 0x20000 and refcount block 1 at 0x20000"},
      {[](Patient& p) { p.Set64(p.RefcountTableEntry(0), 0x50000); },
       "refcount block 0 at 0x50000 and data of guest 0x0 overlap"},
      {[](Patient& p) { p.Set64(48, 0x700000000000); }, "refcount table at 0x700000000000: ends"},
      {[](Patient& p) { p.Set64(56, 0); }, "no refcount table"},
  };
  for (const auto& [damage, text] : cases) {
    Damage(damage);
    CheckReport report = Check("a");
    EXPECT_THAT(Text(report), HasSubstr(text));
    EXPECT_NE(StatusOf(report), 0);
    ExpectMended();
    Outcome write = Shell(fmt::format("qemu-io -c 'write -P 9 300k 300k' {}", Path("a")));
    EXPECT_EQ(write.exit_code, 0) << write.output;
    EXPECT_EQ(Judge("a").status, 0) << text;
  }
}

TEST_F(CheckTest, RefcountsThatDoNotFitStayCorruptions) {
  Damage([](Patient& p) { p.Set64(p.L2Entry(1), p.Get64(p.L2Entry(0))); }, "refcount_bits=1");
  CheckReport report = Check("a", CheckOptions::kAll);
  EXPECT_EQ(report.corruptions, 1u) << Text(report);
  EXPECT_THAT(Text(report), HasSubstr("data of guest 0x0 and data of guest 0x10000"));
}

TEST_F(CheckTest, Snapshots) {
  Make("a", "", "1M", {"write -P 1 0 192k"});
  ASSERT_EQ(Shell(fmt::format("qemu-img snapshot -c one {0} && qemu-img snapshot -c two {0} && "
                              "qemu-io -c \"write 0 64k\" {0}",
                              Path("a")))
                .exit_code,
            0);
  Patient whole = Load("a");
  Save("whole", whole);
  uint64_t table = whole.header().snapshots_offset;

  Patient patient = whole;
  patient.Set64(table, 0x12345);
  Save("a", patient);
  Expect(2, "L1 table of snapshot 0 ('one') at 0x12345: not aligned to clusters");

  patient = whole;
  patient.Set64(table, 0x700000000000);
  Save("a", patient);
  Expect(2, "L1 table of snapshot 0 ('one') at 0x700000000000: ends past the end");
  EXPECT_EQ(Check("a", CheckOptions::kAll).leaks_fixed, 0u) << "its data may still be there";

  patient = whole;
  patient.Set64(table, whole.header().l1_offset);
  Save("a", patient);
  Expect(2, "L1 table at 0x30000 and L1 table of snapshot 0 ('one') at 0x30000 overlap");

  patient = whole;
  patient.bytes().resize(table + 50);
  Save("a", patient);
  EXPECT_THAT(Text(Check("a")), HasSubstr("snapshot table at"));
  EXPECT_EQ(StatusOf(Check("a")), Judge("a").status);
}

TEST_F(CheckTest, Bitmaps) {
  Make("a", "", "1M", {"write -P 1 0 192k"});
  ASSERT_EQ(
      Shell(fmt::format("qemu-img bitmap --add {0} b0 && qemu-io -c 'write 0 64k' {0}", Path("a")))
          .exit_code,
      0);
  ASSERT_EQ(StatusOf(Check("a")), 0) << Text(Check("a"));
  Patient whole = Load("a");
  ASSERT_TRUE(whole.header().bitmaps.has_value());
  uint64_t table = whole.Get64(whole.header().bitmaps->directory_offset);

  Patient patient = whole;
  patient.Set64(table, patient.Get64(table) | 2);
  Save("a", patient);
  EXPECT_EQ(StatusOf(Check("a")), 2);  // qemu-img refuses to open it
  EXPECT_THAT(Text(Check("a")), HasSubstr("table of bitmap 'b0'"));

  patient = whole;
  patient.bytes()[95] = std::byte{0};  // the autoclear bit
  Save("a", patient);
  EXPECT_GT(Expect(3, "leaked").leaks, 1u);
  ExpectMended(CheckOptions::kLeaks);

  patient = whole;
  patient.bytes()[whole.header().bitmaps->directory_offset + 16] = std::byte{99};  // type
  Save("a", patient);
  EXPECT_EQ(StatusOf(Check("a")), 2);
  EXPECT_THAT(Text(Check("a")), HasSubstr("bitmap 0 ('b0')"));
}

TEST_F(CheckTest, DataFileFlags) {
  Make("a", "data_file=" + Path("a.data"), "1M", {"write 0 192k"});
  Patient patient = Load("a");
  patient.Set64(patient.L2Entry(1), patient.Host(1));
  Save("a", patient);
  Expect(2, "\"copied\" flag is clear, with an external data file");
  ExpectMended();
}

TEST_F(CheckTest, DirtyImagesAreRepaired) {
  Make("a", "lazy_refcounts=on", "1M", {});
  Shell(fmt::format("qemu-io -c 'write -P 3 0 300k' -c abort {}", Path("a")));
  ASSERT_TRUE(Load("a").header().incompatible & kDirty);
  ASSERT_EQ(Judge("a").status, 2);
  std::string before = Content("a");
  auto store = OpenFile("a");
  auto repaired = RepairDirty(*store);
  ASSERT_TRUE(repaired.has_value()) << repaired.error().text();
  store.reset();
  EXPECT_EQ(Load("a").header().incompatible & kDirty, 0u);
  EXPECT_EQ(Judge("a").status, 0);
  EXPECT_EQ(Content("a"), before);
}

TEST_F(CheckTest, DirtyImagesThatCannotBeRepairedStayDirty) {
  Damage([](Patient& p) {
    p.bytes()[79] = std::byte{1};
    p.Set64(p.L1Entry(0), 0x7000000000);
  });
  auto store = OpenFile("a");
  auto repaired = RepairDirty(*store);
  ASSERT_FALSE(repaired.has_value());
  EXPECT_THAT(repaired.error().text(), HasSubstr("L1 entry 0"));
  EXPECT_TRUE(Load("a").header().incompatible & kDirty);
}

TEST_F(CheckTest, CorruptBitIsClearedOnlyWhereNothingIsLeft) {
  Damage([](Patient& p) { p.bytes()[79] = std::byte{2}, p.SetRefcount(kData, 0); });
  ExpectMended();
  EXPECT_EQ(Load("a").header().incompatible, 0u);
  Damage([](Patient& p) {
    p.bytes()[79] = std::byte{2}, p.Set64(p.L2Entry(1), kCopied | 0x7000000000);
  });
  Check("a", CheckOptions::kAll);
  EXPECT_EQ(Load("a").header().incompatible, kCorrupt);
}

TEST_F(CheckTest, UnknownAutoclearBitsAreClearedBeforeARepair) {
  Damage([](Patient& p) { p.bytes()[88] = std::byte{0x80}, p.SetRefcount(kData, 0); });
  EXPECT_EQ(Load("a").header().autoclear, uint64_t{1} << 63);
  EXPECT_EQ(StatusOf(Check("a")), 2);
  EXPECT_EQ(Load("a").header().autoclear, uint64_t{1} << 63) << "a check does not write";
  ExpectMended();
  EXPECT_EQ(Load("a").header().autoclear, 0u);
}

TEST_F(CheckTest, RefusesToRepairWhatIsReadOnly) {
  Damage([](Patient& p) { p.SetRefcount(kData, 0); });
  MemoryStore store(Load("a").bytes(), {.name = "memory", .writable = false});
  auto report = CheckQcow2(store, {}, {.repair = CheckOptions::kAll});
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code(), Code::kReadOnly);
}

TEST_F(CheckTest, WhatIsNoImageIsAnError) {
  MemoryStore store(AsBytes(std::string_view("something else altogether, and quite short")));
  EXPECT_EQ(CheckQcow2(store, {}, {}).error().code(), Code::kCorrupt);
}

}  // namespace
}  // namespace platter::qcow2
