// Images in compressed files and in OVF packages, made by the real tools.
#include "cow/unwrap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <iterator>

#include "cow/disk.h"
#include "io/engine/engine.h"
#include "tests/interop/qemu.h"

namespace platter {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing_support::MustRun;
using testing_support::TempFolder;

class UnwrapTest : public testing::Test {
 protected:
  std::string At(const std::string& name) { return folder_.File(name); }
  // Runs a command in the folder.
  std::string In(const std::string& command) {
    return MustRun("cd '" + folder_.File("") + "' && " + command);
  }
  void Put(const std::string& name, const std::string& content) {
    std::ofstream(At(name), std::ios::binary) << content;
  }
  std::string Get(const std::string& name) {
    std::ifstream file(At(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  // disk.raw of 3 MiB and what QEMU makes of it.
  void MakeDisk() {
    In("truncate -s 3M disk.raw && qemu-io -f raw -c 'write -P 17 1M 300k' -c 'write -P 99 2900k "
       "4k' disk.raw > /dev/null && qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2");
  }

  Result<std::unique_ptr<Disk>> Open(const std::string& name, DiskOptions options = {}) {
    warnings_.clear();
    return Disk::Open(At(name), options, Gate(policy_), &warnings_);
  }
  Result<std::vector<ChainEntry>> InfoOf(const std::string& name, DiskOptions options = {}) {
    warnings_.clear();
    return ReadChainInfo(At(name), options, Gate(policy_), false, &warnings_);
  }
  std::string ErrorOf(const std::string& name, DiskOptions options = {}) {
    auto disk = Open(name, options);
    return disk ? "opened" : disk.error().text();
  }
  static std::string ContentOf(Layer& disk) {
    std::string content(disk.info().size, '?');
    auto read = Read(disk, 0, std::as_writable_bytes(std::span(content)));
    EXPECT_TRUE(read.has_value()) << read.error().text();
    return content;
  }
  void ExpectDisk(const std::string& name, DiskOptions options = {}) {
    SCOPED_TRACE(name);
    auto disk = Open(name, options);
    ASSERT_TRUE(disk.has_value()) << disk.error().text();
    EXPECT_TRUE(ContentOf(**disk) == Get("disk.raw"));
  }

  // A description of disks with these files; `more` goes into each Disk.
  static std::string Ovf(const std::vector<std::string>& files, const std::string& more = "",
                         const std::string& file_more = "") {
    std::string references, disks;
    for (size_t i = 0; i < files.size(); ++i) {
      references +=
          fmt::format("<File ovf:id='file{}' ovf:href='{}' {}/>\n", i, files[i], file_more);
      disks += fmt::format(
          "<Disk ovf:diskId='vmdisk{0}' ovf:fileRef='file{0}' ovf:capacity='3' "
          "ovf:capacityAllocationUnits='byte * 2^20' {1}/>\n",
          i, more);
    }
    return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
           "<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" "
           "xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\">\n<References>\n" +
           references + "</References>\n<DiskSection><Info>Disks</Info>\n" + disks +
           "</DiskSection>\n</Envelope>\n";
  }
  // vm.mf with the digests of these files.
  void Seal(const std::string& names, const std::string& digest = "sha256") {
    In(digest + "sum --tag " + names + " | sed 's/^\\(SHA[0-9]*\\) /\\1/; s/) = /)= /' > vm.mf");
  }
  // vm.ova of vm.ovf, vm.mf (with digests of this kind, none for "") and these files.
  void MakeOva(const std::vector<std::string>& files, const std::string& digest = "sha256",
               const std::string& tar_options = "--format=ustar") {
    Put("vm.ovf", Ovf(files));
    std::string names = "vm.ovf";
    for (const std::string& file : files) names += " " + file;
    if (!digest.empty()) {
      Seal(names, digest);
      names = "vm.ovf vm.mf" + names.substr(6);
    }
    In("tar -c " + tar_options + " -f vm.ova " + names);
  }

  TempFolder folder_;
  GatePolicy policy_;
  std::vector<std::string> warnings_;
};

TEST_F(UnwrapTest, EveryCompressionAndWhatIsInsideIsProbed) {
  MakeDisk();
  for (std::string command : {"gzip -k", "xz -k", "zstd -q -k", "bzip2 -k"}) {
    In("rm -f disk.qcow2.* && " + command + " disk.qcow2 && mv disk.qcow2.* packed");
    ExpectDisk("packed");
    EXPECT_THAT(warnings_, IsEmpty());
    ExpectDisk("packed", {.format = "qcow2"});
    auto info = InfoOf("packed");
    ASSERT_TRUE(info.has_value()) << info.error().text();
    EXPECT_EQ((*info)[0].info.format, "qcow2");
    ASSERT_EQ((*info)[0].around.size(), 1u);
    EXPECT_EQ((*info)[0].around[0][0].name, "type");
  }
}

TEST_F(UnwrapTest, RawInsideIsRawByGuessOrByUnwrap) {
  MakeDisk();
  In("gzip -k disk.raw");
  ExpectDisk("disk.raw.gz");
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("taken for raw")));
  ExpectDisk("disk.raw.gz", {.format = "raw", .inside = true});
  EXPECT_THAT(warnings_, IsEmpty());

  // Raw, and nothing more said, is what the file is.
  auto packed = Open("disk.raw.gz", {.format = "raw"});
  ASSERT_TRUE(packed.has_value());
  EXPECT_TRUE(ContentOf(**packed) == Get("disk.raw.gz"));
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("looks like gzip")));
}

TEST_F(UnwrapTest, WritingIsRefused) {
  MakeDisk();
  In("gzip -k disk.qcow2");
  MakeOva({"disk.qcow2"});
  for (std::string name : {"disk.qcow2.gz", "vm.ova", "vm.ovf"}) {
    DiskOptions options;
    options.file.writable = true;
    auto disk = Open(name, options);
    ASSERT_FALSE(disk.has_value());
    EXPECT_EQ(disk.error().code(), Code::kReadOnly);
    EXPECT_THAT(disk.error().text(), AllOf(HasSubstr(name), HasSubstr("only be read")));
  }
}

TEST_F(UnwrapTest, TwoWrappingsAndNoMore) {
  MakeDisk();
  In("gzip -c disk.qcow2 | xz -c > two && zstd -q -c two > three");
  ExpectDisk("two");
  EXPECT_THAT(ErrorOf("three"), HasSubstr("compressed with gzip: decompress it first"));

  MakeOva({"disk.qcow2"});
  In("gzip -k vm.ova");
  ExpectDisk("vm.ova.gz");
  In("gzip -k disk.qcow2");
  MakeOva({"disk.qcow2.gz"});
  ExpectDisk("vm.ova");
  ExpectDisk("vm.ovf");
}

TEST_F(UnwrapTest, AParentMayBeCompressed) {
  MakeDisk();
  In("gzip -k disk.qcow2 && cp disk.qcow2 base.qcow2 && qemu-img create -q -f qcow2 -b base.qcow2 "
     "-F qcow2 top.qcow2 && mv disk.qcow2.gz base.qcow2");
  ExpectDisk("top.qcow2");
}

TEST_F(UnwrapTest, DamageIsNamed) {
  MakeDisk();
  In("gzip -k disk.qcow2 && truncate -s -5 disk.qcow2.gz");
  EXPECT_THAT(ErrorOf("disk.qcow2.gz"),
              AllOf(HasSubstr("disk.qcow2.gz'"), HasSubstr("gzip data ends in the middle")));
}

TEST_F(UnwrapTest, LimitsAreTheUsers) {
  MakeDisk();
  In("gzip -k disk.raw");
  DiskOptions options;
  options.unpack = {.most = 2 * kMiB, .given = true};
  EXPECT_THAT(ErrorOf("disk.raw.gz", options), HasSubstr("--unpack-limit"));
  options.unpack.most = 3 * kMiB;
  ExpectDisk("disk.raw.gz", options);
}

TEST_F(UnwrapTest, InfoOfAHeaderInABombNeedsTheHeaderOnly) {
  MakeDisk();
  In("truncate -s 1200M disk.qcow2 && zstd -q -c < disk.qcow2 > bomb.zst");  // as a stream: no size
  auto start = std::chrono::steady_clock::now();
  auto info = InfoOf("bomb.zst");
  ASSERT_TRUE(info.has_value()) << info.error().text();
  EXPECT_EQ((*info)[0].info.format, "qcow2");
  EXPECT_EQ((*info)[0].info.size, 3 * kMiB);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
  EXPECT_THAT(ErrorOf("bomb.zst"), AllOf(HasSubstr("200 times"), HasSubstr("--unpack-limit")));
}

TEST_F(UnwrapTest, OvaWithEachDigest) {
  MakeDisk();
  for (std::string digest : {"sha1", "sha256", "sha512", ""}) {
    SCOPED_TRACE(digest);
    MakeOva({"disk.qcow2"}, digest);
    ExpectDisk("vm.ova");
    EXPECT_THAT(warnings_, IsEmpty());
    ExpectDisk("vm.ovf");
    EXPECT_THAT(warnings_, IsEmpty());
    In("rm -f vm.mf");
  }
}

TEST_F(UnwrapTest, TarsOfAllKinds) {
  MakeDisk();
  const std::string longest = std::string(120, 'n') + ".qcow2";
  In("cp disk.qcow2 " + longest);
  for (std::string options : {"--format=gnu", "--format=pax", "--format=v7"}) {
    SCOPED_TRACE(options);
    MakeOva({options == "--format=v7" ? "disk.qcow2" : longest}, "sha256", options);
    // Without its magic a tar is not told from anything else.
    if (options == "--format=v7") {
      auto store = Gate::OpenFile(At("vm.ova"), {});
      auto files = TarFiles::Open(std::move(*store), "vm.ova");
      ASSERT_TRUE(files.has_value()) << files.error().text();
      EXPECT_EQ((*files)->NameWithEnding(".ovf"), "vm.ovf");
      EXPECT_EQ((*files)->NameWithEnding(".qcow2"), "disk.qcow2");
    } else {
      ExpectDisk("vm.ova");
    }
  }
}

TEST_F(UnwrapTest, SeveralDisks) {
  MakeDisk();
  In("cp disk.qcow2 'my disk.qcow2'");
  Put("vm.ovf", Ovf({"disk.raw", "my%20disk.qcow2"}));
  In("tar -c --format=ustar -f vm.ova vm.ovf disk.raw 'my disk.qcow2'");
  for (std::string file : {"vm.ova", "vm.ovf"}) {
    EXPECT_THAT(ErrorOf(file), AllOf(HasSubstr("has 2 disks"), HasSubstr("disk.raw"),
                                     HasSubstr("my%20disk.qcow2")));
    ExpectDisk(file + ":disk.raw");
    ExpectDisk(file + ":my disk.qcow2");
    ExpectDisk(file + ":my%20disk.qcow2");
    ExpectDisk(file + ":vmdisk1");
    EXPECT_THAT(ErrorOf(file + ":none"), AllOf(HasSubstr("none"), HasSubstr("No such file")));
  }
  auto info = InfoOf("vm.ova:vmdisk1");
  ASSERT_TRUE(info.has_value()) << info.error().text();
  EXPECT_EQ((*info)[0].path, At("vm.ova:my%20disk.qcow2"));
  In("gzip -k disk.qcow2");
  EXPECT_THAT(ErrorOf("disk.qcow2.gz:a"), HasSubstr("is no OVF package"));
}

TEST_F(UnwrapTest, AManifestThatDoesNotMatch) {
  MakeDisk();
  MakeOva({"disk.qcow2"});
  In("printf x | dd of=disk.qcow2 bs=1 seek=200000 conv=notrunc 2> /dev/null && "
     "tar -c --format=ustar -f vm.ova vm.ovf vm.mf disk.qcow2");
  for (std::string name : {"vm.ova", "vm.ovf"}) {
    const std::string error = ErrorOf(name);
    EXPECT_THAT(error, AllOf(HasSubstr("'disk.qcow2' is not what the manifest says"),
                             HasSubstr("SHA256 is"), HasSubstr("listed is")));
    const std::string is = In("sha256sum disk.qcow2").substr(0, 64);
    EXPECT_THAT(error, HasSubstr(is));
    // Info reads no data, and says what is listed.
    auto info = InfoOf(name);
    ASSERT_TRUE(info.has_value()) << info.error().text();
    EXPECT_EQ((*info)[0].around[0].back().name, "manifest");
  }
  MakeOva({"disk.qcow2"});
  In("sed -i 's/capacity=.3./capacity=\"4\"/' vm.ovf && "
     "tar -c --format=ustar -f vm.ova vm.ovf vm.mf disk.qcow2");
  EXPECT_THAT(ErrorOf("vm.ova"), HasSubstr("'vm.ovf' is not what the manifest says"));
  In("rm vm.mf");
  ExpectDisk("vm.ovf");
  EXPECT_THAT(warnings_, ElementsAre(AllOf(HasSubstr("3145728"), HasSubstr("4194304"))));
}

// A disk in several files beside its description: each of them is verified.
TEST_F(UnwrapTest, ExtentsBesideADescription) {
  MakeDisk();
  In("qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat disk.raw d.vmdk");
  Put("vm.ovf", Ovf({"d.vmdk"}));
  Seal("vm.ovf d.vmdk d-flat.vmdk");
  ExpectDisk("vm.ovf");
  EXPECT_THAT(warnings_, IsEmpty());
  In("printf x | dd of=d-flat.vmdk bs=1 seek=5000 conv=notrunc status=none");
  EXPECT_THAT(ErrorOf("vm.ovf"),
              AllOf(HasSubstr("d-flat.vmdk"), HasSubstr("is not what the manifest says")));
  Seal("vm.ovf d.vmdk d-flat.vmdk");
  EXPECT_EQ(ErrorOf("vm.ovf"), "opened");
}

// As VMware and others export machines: stream-optimized disks, of which each can be had.
TEST_F(UnwrapTest, StreamsInAnOva) {
  MakeDisk();
  In("qemu-img convert -f raw -O vmdk -o subformat=streamOptimized disk.raw vm-disk1.vmdk");
  In("qemu-io -f raw -c 'write -q -P 5 64k 1M' disk.raw && "
     "qemu-img convert -f raw -O vmdk -o subformat=streamOptimized disk.raw vm-disk2.vmdk");
  Put("vm.ovf", Ovf({"vm-disk1.vmdk", "vm-disk2.vmdk"}));
  Seal("vm.ovf vm-disk1.vmdk vm-disk2.vmdk");
  In("tar --format=ustar -cf vm.ova vm.ovf vm.mf vm-disk1.vmdk vm-disk2.vmdk");
  ExpectDisk("vm.ova:vm-disk2.vmdk");
  ExpectDisk("vm.ova:vmdisk1");
  auto first = Open("vm.ova:vm-disk1.vmdk");
  ASSERT_TRUE(first) << first.error().text();
  EXPECT_EQ((*first)->info().format, "vmdk");
  In("qemu-img convert -f vmdk -O raw vm-disk1.vmdk disk.raw");
  ExpectDisk("vm.ova:vm-disk1.vmdk");
  EXPECT_THAT(ErrorOf("vm.ova"), HasSubstr("vm-disk1.vmdk, vm-disk2.vmdk"));
}

TEST_F(UnwrapTest, FilesThatAManifestDoesNotList) {
  MakeDisk();
  MakeOva({"disk.qcow2"});
  In("sed -i /disk/d vm.mf && tar -c --format=ustar -f vm.ova vm.ovf vm.mf disk.qcow2");
  ExpectDisk("vm.ova");
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("does not list 'disk.qcow2'")));
  Put("vm.mf", "MD5(vm.ovf)= 00\n");
  EXPECT_THAT(ErrorOf("vm.ovf"), AllOf(HasSubstr("vm.mf"), HasSubstr("line 1"), HasSubstr("MD5")));
}

TEST_F(UnwrapTest, AnArchiveNamesNothingOutside) {
  MakeDisk();
  In("qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2");
  MakeOva({"top.qcow2"});
  EXPECT_THAT(ErrorOf("vm.ova"),
              AllOf(HasSubstr("parent 'disk.qcow2'"), HasSubstr("may not name what is outside")));
  // What an OVF names is opened as by any image.
  ExpectDisk("vm.ovf");

  In("qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=on split.qcow2 3M && cp "
     "disk.raw data.raw");
  MakeOva({"split.qcow2"});
  EXPECT_THAT(ErrorOf("vm.ova"),
              AllOf(HasSubstr("data file 'data.raw'"), HasSubstr("no such member")));
  In("tar -c --format=ustar -f vm.ova vm.ovf vm.mf split.qcow2 data.raw");
  ExpectDisk("vm.ova");
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("does not list 'data.raw'")));

  Put("vm.ovf", Ovf({"/etc/passwd"}));
  In("tar -c --format=ustar -f vm.ova vm.ovf disk.raw");
  EXPECT_THAT(ErrorOf("vm.ova"), HasSubstr("no such member"));
  In("rm vm.mf");
  EXPECT_THAT(ErrorOf("vm.ovf"), HasSubstr("--allow-external"));
  Put("vm.ovf", Ovf({"http://example.com/a"}));
  EXPECT_THAT(ErrorOf("vm.ovf"), HasSubstr("names a protocol"));
  Put("vm.ovf", Ovf({"vm.ovf"}));
  EXPECT_THAT(ErrorOf("vm.ovf"), HasSubstr("already uses"));
}

TEST_F(UnwrapTest, DeltaDisksAreRefusedByName) {
  MakeDisk();
  Put("vm.ovf", Ovf({"disk.qcow2"}, "ovf:parentRef='base'"));
  EXPECT_THAT(ErrorOf("vm.ovf"), AllOf(HasSubstr("'vmdisk0' ('disk.qcow2')"), HasSubstr("'base'"),
                                       HasSubstr("ovf:parentRef")));
}

TEST_F(UnwrapTest, AFileInChunks) {
  MakeDisk();
  Put("vm.ovf", Ovf({"disk.qcow2"}, "", "ovf:chunkSize='100000'"));
  In("split -b 100000 -d -a 9 disk.qcow2 disk.qcow2. && rm disk.qcow2 && ls disk.qcow2.* > list && "
     "tar -c --format=ustar -f vm.ova vm.ovf disk.qcow2.*");
  ExpectDisk("vm.ova");
  ExpectDisk("vm.ovf");
}

TEST_F(UnwrapTest, AChunkThatIsMissingAtTheEnd) {
  MakeDisk();
  Put("vm.ovf", Ovf({"disk.raw"}, "", "ovf:size='3145728' ovf:chunkSize='1048576'"));
  In("split -b 1M -d -a 9 disk.raw disk.raw.");
  EXPECT_EQ(ErrorOf("vm.ovf"), "opened");
  In("rm disk.raw.000000002");
  EXPECT_THAT(ErrorOf("vm.ovf"), HasSubstr("2097152 bytes together, its description says 3145728"));
}

TEST_F(UnwrapTest, BrokenPackages) {
  MakeDisk();
  MakeOva({"disk.qcow2"});
  In("truncate -s -200000 vm.ova");
  EXPECT_THAT(ErrorOf("vm.ova"), AllOf(HasSubstr("tar header at offset"),
                                       HasSubstr("'disk.qcow2' reach past the end")));
  MakeOva({"disk.qcow2"});
  In("printf x | dd of=vm.ova bs=1 seek=100 conv=notrunc 2> /dev/null && rm vm.mf");
  EXPECT_THAT(ErrorOf("vm.ova"),
              AllOf(HasSubstr("tar header at offset 0x0"), HasSubstr("checksum does not match")));
  Put("vm.ovf", Ovf({}));
  EXPECT_THAT(ErrorOf("vm.ovf"), HasSubstr("describes no disk"));
  Put("vm.ovf", "<Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/1'><References>");
  EXPECT_THAT(ErrorOf("vm.ovf"), HasSubstr("XML line 1"));
  In("tar -c --format=ustar -f plain.tar disk.raw");
  EXPECT_THAT(ErrorOf("plain.tar"), HasSubstr("is an archive, tar"));
}

TEST_F(UnwrapTest, MemberNames) {
  Put("a.ova", "");
  Put("a.ova:b", "");
  EXPECT_EQ(SplitMember(At("a.ova")).member, "");
  EXPECT_EQ(SplitMember(At("a.ova:b")).path, At("a.ova:b"));
  EXPECT_EQ(SplitMember(At("a.ova:c:d")).path, At("a.ova"));
  EXPECT_EQ(SplitMember(At("a.ova:c:d")).member, "c:d");
  EXPECT_EQ(SplitMember(At("none:c")).path, At("none:c"));
}

TEST_F(UnwrapTest, CheckWorksOnWhatIsInside) {
  MakeDisk();
  MakeOva({"disk.qcow2"});
  In("gzip -k disk.qcow2");
  Gate gate(policy_);
  for (std::string name : {"vm.ova", "vm.ovf", "disk.qcow2.gz"}) {
    auto image = OpenTopImage(At(name), {}, gate, nullptr);
    ASSERT_TRUE(image.has_value()) << image.error().text();
    EXPECT_EQ(image->format->name, "qcow2");
    auto report = image->format->check(*image->store, {.opener = image->opener.get()}, {});
    ASSERT_TRUE(report.has_value()) << report.error().text();
    EXPECT_EQ(report->errors + report->corruptions + report->leaks, 0u);
  }
}

}  // namespace
}  // namespace platter
