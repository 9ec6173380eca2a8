#include "cow/ovf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace platter {
namespace {

using testing::HasSubstr;

std::string Envelope(const std::string& body) { return "<o:Envelope>" + body + "</o:Envelope>"; }

std::optional<uint64_t> Capacity(const std::string& attributes) {
  auto ovf = ParseOvf(Envelope("<o:Disk o:diskId='a' " + attributes + "/>"));
  EXPECT_TRUE(ovf.has_value()) << ovf.error().text();
  return ovf ? ovf->disks.at(0).capacity : std::nullopt;
}

TEST(Ovf, FilesAndDisks) {
  auto ovf =
      ParseOvf(Envelope("<References><o:File o:id='f1' o:href='a b.vmdk' o:size='5'/>"
                        "<File id='f2' href='c' compression='gzip' chunkSize='100'/></References>"
                        "<DiskSection><Disk diskId='d1' fileRef='f1' capacity='10'/>"
                        "<Disk diskId='d2' capacity='10' parentRef='d1'/></DiskSection>"));
  ASSERT_TRUE(ovf.has_value()) << ovf.error().text();
  ASSERT_EQ(ovf->files.size(), 2u);
  EXPECT_EQ(ovf->files[0].href, "a b.vmdk");
  EXPECT_FALSE(ovf->files[0].chunked);
  EXPECT_EQ(ovf->files[0].size, 5u);
  EXPECT_EQ(ovf->files[1].size, std::nullopt);
  EXPECT_EQ(ovf->files[1].compression, "gzip");
  EXPECT_TRUE(ovf->files[1].chunked);
  ASSERT_EQ(ovf->disks.size(), 2u);
  EXPECT_EQ(ovf->disks[0].file_ref, "f1");
  EXPECT_EQ(ovf->disks[1].parent_ref, "d1");
  EXPECT_EQ(ovf->FindFile("f2"), &ovf->files[1]);
  EXPECT_EQ(ovf->FindFile("f3"), nullptr);
  EXPECT_EQ(ovf->FindFile(""), nullptr);
}

TEST(Ovf, Capacities) {
  EXPECT_EQ(Capacity("capacity='10'"), 10u);
  EXPECT_EQ(Capacity("capacity='10' capacityAllocationUnits='byte * 2^30'"), 10 * kGiB);
  EXPECT_EQ(Capacity("capacity='10' capacityAllocationUnits='byte*2^20'"), 10 * kMiB);
  EXPECT_EQ(Capacity("capacity='10' capacityAllocationUnits='byte * 1000'"), 10'000u);
  EXPECT_EQ(Capacity("capacity='10' capacityAllocationUnits='GigaBytes'"), 10 * kGiB);
  EXPECT_EQ(Capacity("capacity='${size}'"), std::nullopt);
  EXPECT_EQ(Capacity("capacity='10' capacityAllocationUnits='byte * 2^64'"), std::nullopt);
  EXPECT_EQ(Capacity("capacity='10' capacityAllocationUnits='byte * 1^99999999999'"), std::nullopt);
  EXPECT_EQ(Capacity("capacity='99999999999' capacityAllocationUnits='byte * 2^40'"), std::nullopt);
  EXPECT_EQ(Capacity("capacity='10' capacityAllocationUnits='parsec'"), std::nullopt);
}

TEST(Ovf, WhatIsNone) {
  EXPECT_THAT(ParseOvf("<a/>").error().text(), HasSubstr("'a', not 'Envelope'"));
  EXPECT_THAT(ParseOvf("<Envelope>").error().text(), HasSubstr("ends within"));
}

TEST(Manifest, Lines) {
  const std::string sha1(40, 'a'), sha256(64, 'B'), sha512(128, '0');
  auto entries = ParseManifest("SHA1(a.ovf)= " + sha1 + "\r\n\r\nSHA256 (b (1).vmdk) = " + sha256 +
                               "\nsha512(c)=" + sha512);
  ASSERT_TRUE(entries.has_value()) << entries.error().text();
  ASSERT_EQ(entries->size(), 3u);
  EXPECT_EQ((*entries)[0].name, "a.ovf");
  EXPECT_EQ((*entries)[0].kind, HashKind::kSha1);
  EXPECT_EQ((*entries)[1].name, "b (1).vmdk");
  EXPECT_EQ((*entries)[1].digest, std::string(64, 'b'));
  EXPECT_EQ((*entries)[2].kind, HashKind::kSha512);
}

TEST(Manifest, WhatIsWrongIsNamed) {
  EXPECT_THAT(ParseManifest("\nfile").error().text(), HasSubstr("line 2"));
  EXPECT_THAT(ParseManifest("MD5(a)= 00").error().text(), HasSubstr("'MD5' is not known"));
  EXPECT_THAT(ParseManifest("SHA1(a)= 00").error().text(), HasSubstr("no SHA1 digest"));
  EXPECT_THAT(ParseManifest("SHA1(a)= " + std::string(40, 'g')).error().text(),
              HasSubstr("no SHA1 digest"));
  EXPECT_THAT(ParseManifest("SHA1(a) " + std::string(40, 'a')).error().text(), HasSubstr("is not"));
  EXPECT_THAT(ParseManifest(")SHA1(").error().text(), HasSubstr("is not"));
}

}  // namespace
}  // namespace platter
