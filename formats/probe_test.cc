#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "formats/format.h"
#include "formats/raw/raw.h"
#include "io/memory_store.h"

namespace platter {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using namespace std::string_literals;

ProbeResult ProbeText(std::string content, size_t size = 0) {
  if (content.size() < size) content.resize(size);
  MemoryStore store(AsBytes(std::string_view(content)));
  auto result = Probe(store);
  EXPECT_TRUE(result.has_value()) << result.error().text();
  return result ? *result : ProbeResult();
}

std::string NewQcow2() {
  MemoryStore store;
  Result<> created = (*FindFormat("qcow2"))->create(store, {.size = kMiB});
  EXPECT_TRUE(created.has_value()) << created.error().text();
  auto bytes = store.Contents();
  return std::string(AsText(bytes));
}

TEST(Registry, FindsFormats) {
  EXPECT_EQ((*FindFormat("raw"))->name, "raw");
  EXPECT_EQ((*FindFormat("qcow2"))->name, "qcow2");
  auto none = FindFormat("cow\n");
  ASSERT_FALSE(none.has_value());
  EXPECT_EQ(none.error().code(), Code::kUnsupported);
  std::string names;
  for (const Format* format : AllFormats()) {
    EXPECT_EQ(*FindFormat(format->name), format);
    names += (names.empty() ? "" : ", ") + std::string(format->name);
  }
  EXPECT_THAT(none.error().text(), HasSubstr("'cow\\x0a' is not supported; there are: " + names));
  EXPECT_EQ((*FindFormat("vhd"))->name, "vpc");
}

TEST(Probe, Qcow2) {
  ProbeResult found = ProbeText(NewQcow2());
  ASSERT_NE(found.format, nullptr);
  EXPECT_EQ(found.format->name, "qcow2");
  EXPECT_EQ(found.refusal, "");
  EXPECT_EQ(found.note, "");
}

TEST(Probe, AHeaderDecidesBeforeATrailer) {
  for (const char* magic : {"conectix", "koly"}) {
    std::string trailer = magic;
    trailer.resize(512);
    ProbeResult found = ProbeText(NewQcow2() + trailer);
    ASSERT_NE(found.format, nullptr);
    EXPECT_EQ(found.format->name, "qcow2");
    EXPECT_THAT(found.note, AllOf(HasSubstr("trailer"), HasSubstr("ignored")));
  }
}

TEST(Probe, UnsupportedFormatsAreNamed) {
  EXPECT_EQ(ProbeText("QED\0"s, 65536).refusal,
            "is QED, which is not supported yet; to treat it as raw bytes give -f raw");
  EXPECT_EQ(ProbeText("QED\0"s, 65536).refusal_code, Code::kUnsupported);
  // A version that qcow2 does not have yet is for qcow2 to refuse.
  EXPECT_EQ(ProbeText("QFI\xfb\0\0\0\x09"s, 512).format, *FindFormat("qcow2"));
  EXPECT_THAT(ProbeText("QFI\xfb\0\0\0\1"s, 512).refusal, HasSubstr("version 1"));
  EXPECT_THAT(ProbeText("QFI\xfb"s).refusal, HasSubstr("qcow"));
}

TEST(Probe, VhdByItsHeaderOrItsFooter) {
  std::string footer(8192, '\0');
  footer.replace(8192 - 512, 8, "conectix");
  EXPECT_EQ(ProbeText(footer).format, *FindFormat("vpc"));
  EXPECT_EQ(ProbeText(footer).note, "") << "its own trailer";
  footer.replace(0, 8, "conectix");
  EXPECT_EQ(ProbeText(footer).format, *FindFormat("vpc"));
  EXPECT_EQ(ProbeText(footer).note, "");
}

TEST(Probe, WrappersAreRefused) {
  EXPECT_THAT(ProbeText("\x1f\x8b\x08", 1000).refusal,
              HasSubstr("is compressed with gzip: decompress it first"));
  EXPECT_EQ(ProbeText("PK\3\4", 1000).refusal_code, Code::kRefused);
  EXPECT_THAT(ProbeText("PK\3\4", 1000).refusal, HasSubstr("is an archive, zip"));
}

TEST(Probe, IsoWithoutPartitionsIsNoDisk) {
  std::string iso(40 * 1024, '\0');
  iso.replace(32768, 7, "\1CD001\1");
  EXPECT_THAT(ProbeText(iso).refusal, HasSubstr("ISO 9660"));
  iso.replace(510, 2, "\x55\xaa");
  iso[446 + 4] = '\x17';
  ProbeResult hybrid = ProbeText(iso);
  EXPECT_EQ(hybrid.refusal, "");
  EXPECT_EQ(hybrid.format, nullptr);
}

TEST(Probe, TheRestIsForTheCallerToDecide) {
  for (const std::string& content : {""s, "Q"s, "\n"s, std::string(1 << 20, '\xff'), "text"s}) {
    ProbeResult found = ProbeText(content);
    EXPECT_EQ(found.format, nullptr);
    EXPECT_EQ(found.refusal, "");
  }
}

}  // namespace
}  // namespace platter
