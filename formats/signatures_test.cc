#include "formats/signatures.h"

#include <gtest/gtest.h>

#include <string>

#include "formats/format.h"

namespace platter {
namespace {

using namespace std::string_literals;
using namespace std::string_view_literals;

// What a file of these first bytes (padded with zeros to `size`) and last bytes is taken for.
std::string NameOf(std::string head, const std::string& tail = "", size_t size = 8192) {
  std::string content = std::move(head);
  content.resize(size);
  content.replace(size - tail.size(), tail.size(), tail);
  ConstBytes bytes = AsBytes(std::string_view(content));
  return std::string(SignatureName(bytes.first(std::min<size_t>(size, 4096)),
                                   bytes.last(std::min<size_t>(size, 512)), size));
}

std::string Trailer(const std::string& magic, size_t length = 512) {
  std::string trailer = magic;
  trailer.resize(length, '\1');
  return trailer;
}

TEST(Signature, ImageFormats) {
  EXPECT_EQ(NameOf("QFI\xfb\0\0\0\3"s), "qcow2");
  EXPECT_EQ(NameOf("QFI\xfb\0\0\0\2"s), "qcow2");
  EXPECT_EQ(NameOf("QFI\xfb\0\0\0\1"s), "qcow (version 1)");
  EXPECT_EQ(NameOf("QFI\xfb\0\0\0\x09"s), "qcow (of an unknown version)");
  EXPECT_EQ(NameOf("KDMV"), "VMDK");
  EXPECT_EQ(NameOf("<<< Oracle VM VirtualBox Disk Image >>>\n"s + std::string(24, '\0') +
                   "\x7f\x10\xda\xbe"),
            "VDI");
  EXPECT_EQ(NameOf("vhdxfile"), "VHDX");
  EXPECT_EQ(NameOf("conectix"), "VHD");
  EXPECT_EQ(NameOf("QED\0"s), "QED");
  EXPECT_EQ(NameOf("WithouFreSpacExt"), "Parallels");
  EXPECT_EQ(NameOf("Bochs Virtual HD Image"), "Bochs");
  EXPECT_EQ(NameOf("#!/bin/sh\n#V2.0 Format\nmodprobe cloop\n"), "cloop");
  EXPECT_EQ(NameOf("LUKS\xba\xbe\0\1"s), "LUKS");
}

TEST(Signature, VmdkDescriptors) {
  EXPECT_EQ(NameOf("# Disk DescriptorFile\nversion=1\n"), "VMDK (text descriptor)");
  EXPECT_EQ(NameOf("\xef\xbb\xbf# Disk DescriptorFile\r\n"), "VMDK (text descriptor)");
  EXPECT_EQ(NameOf("# disk descriptorfile\r\nversion=1\r\n"), "VMDK (text descriptor)");
  EXPECT_EQ(NameOf("\n# by hand\nversion=1\n"), "VMDK (text descriptor)");
  EXPECT_EQ(NameOf("#!/bin/sh\nversion=1.5\n"), "");
  EXPECT_EQ(NameOf("#!/bin/sh\necho\n"), "");
  EXPECT_EQ(NameOf("\n"), "");
}

TEST(Signature, Wrappers) {
  EXPECT_EQ(NameOf("\x1f\x8b\x08"), "gzip");
  EXPECT_EQ(NameOf("\xfd"
                   "7zXZ\0"s),
            "xz");
  EXPECT_EQ(NameOf("\x28\xb5\x2f\xfd"), "zstd");
  EXPECT_EQ(NameOf("BZh91AY&SY"), "bzip2");
  EXPECT_EQ(NameOf("BZh0123456"), "");
  EXPECT_EQ(NameOf("PK\3\4"), "zip");
  std::string tar = "disk.raw";
  tar.resize(257);
  EXPECT_EQ(NameOf(tar + "ustar"), "tar");
  tar.replace(0, 8, "box.ovf\0"s);
  EXPECT_EQ(NameOf(tar + "ustar  "), "OVA (tar)");
}

TEST(Signature, Trailers) {
  EXPECT_EQ(NameOf("", Trailer("conectix")), "VHD (fixed size)");
  EXPECT_EQ(NameOf("", Trailer("conectix", 511)), "VHD (fixed size)");
  EXPECT_EQ(NameOf("", Trailer("koly")), "Apple disk image (DMG)");
  EXPECT_EQ(NameOf("", Trailer("koly"), 8193), "Apple disk image (DMG)");
  EXPECT_EQ(NameOf("", Trailer("koly", 511)), "");
  EXPECT_EQ(NameOf("QFI\xfb\0\0\0\3"s, Trailer("koly")), "qcow2") << "the start decides";
}

TEST(Signature, ShortFiles) {
  EXPECT_EQ(NameOf("", "", 0), "");
  EXPECT_EQ(NameOf("Q", "", 1), "");
  EXPECT_EQ(NameOf("KDMV", "", 4), "VMDK");
  EXPECT_EQ(NameOf("KDM", "", 3), "");
  EXPECT_EQ(NameOf("conectix", "", 8), "VHD");
}

TEST(Signature, PartitionTables) {
  std::string sector(1024, '\0');
  auto has = [&] { return HasPartitionTable(AsBytes(std::string_view(sector))); };
  EXPECT_FALSE(has());
  sector[510] = '\x55', sector[511] = '\xaa';
  EXPECT_FALSE(has()) << "a boot sector without partitions";
  sector[446 + 16 + 4] = '\x83';
  EXPECT_TRUE(has());
  sector.assign(1024, '\0');
  sector.replace(512, 8, "EFI PART");
  EXPECT_TRUE(has());
  sector.assign(1024, '\0');
  sector.replace(0, 2, "ER").replace(512, 2, "PM");
  EXPECT_TRUE(has());
  EXPECT_FALSE(HasPartitionTable({}));
}

TEST(Signature, IsoVolumes) {
  EXPECT_TRUE(IsIsoVolume(AsBytes("\1CD001\1"sv)));
  EXPECT_FALSE(IsIsoVolume(AsBytes("xCD001"sv)));
  EXPECT_FALSE(IsIsoVolume({}));
}

}  // namespace
}  // namespace platter
