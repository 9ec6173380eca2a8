#include "io/tar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/memory_store.h"

namespace platter {
namespace {

using testing::AllOf;
using testing::HasSubstr;

void Put(std::string& block, size_t at, std::string_view text) {
  block.replace(at, text.size(), text);
}

// A header block with its checksum, and `data` padded to blocks.
std::string Member(std::string_view name, std::string_view data, char type = '0',
                   std::string size = "") {
  std::string block(kTarBlock, '\0');
  Put(block, 0, name.substr(0, 100));
  Put(block, 100, "0000644");
  Put(block, 124, size.empty() ? fmt::format("{:011o}", data.size()) : size);
  Put(block, 148, "        ");
  block[156] = type;
  Put(block, 257, std::string_view("ustar\00000", 8));
  unsigned sum = 0;
  for (char c : block) sum += static_cast<unsigned char>(c);
  Put(block, 148, fmt::format("{:06o}", sum));
  block[154] = '\0';
  block += data;
  block.resize(RoundUp(block.size(), kTarBlock));
  return block;
}

std::string Listed(const std::string& archive) {
  MemoryStore store{AsBytes(std::string_view(archive))};
  auto members = ReadTar(store);
  if (!members.has_value()) return "!" + members.error().text();
  std::string list;
  for (const TarMember& member : *members) {
    list += fmt::format("{}@{}+{} ", member.name, member.data.offset, member.data.length);
  }
  return list;
}

const std::string kEnd(2 * kTarBlock, '\0');

TEST(Tar, Members) {
  EXPECT_EQ(Listed(Member("a", "12345") + Member("b", "") + Member("c", std::string(513, 'x')) +
                   kEnd + "anything"),
            "a@512+5 b@1536+0 c@2048+513 ");
  EXPECT_EQ(Listed(kEnd), "");
  EXPECT_EQ(Listed(""), "");
  EXPECT_EQ(Listed(Member("a", "12345")), "a@512+5 ");                 // no mark of the end
  EXPECT_EQ(Listed(Member("a", "12345").substr(0, 517)), "a@512+5 ");  // nor padding
  EXPECT_EQ(Listed(Member("d/", "", '5') + Member("l", "", '2') + Member("a", "1")), "a@1536+1 ");
}

TEST(Tar, NamesAndSizesElsewhere) {
  const std::string longest(300, 'n');
  EXPECT_EQ(Listed(Member("././@LongLink", longest + '\0', 'L') + Member("n", "1")),
            longest + "@1536+1 ");
  EXPECT_EQ(Listed(Member("PaxHeaders/a", "13 path=b/c\n12 mtime=12\n", 'x') + Member("a", "1") +
                   Member("d", "2")),
            "!tar header at offset 0x0: a malformed record of an extended header");
  EXPECT_EQ(Listed(Member("PaxHeaders/a", "12 path=b/c\n12 mtime=12\n", 'x') + Member("a", "1") +
                   Member("d", "2")),
            "b/c@1536+1 d@2560+1 ");
  EXPECT_EQ(Listed(Member("PaxHeaders/a", "9 size=3\n", 'x') + Member("a", "123", '0', "0")),
            "a@1536+3 ");
  std::string base256(12, '\0');
  base256[0] = '\x80';
  base256[11] = '\3';
  EXPECT_EQ(Listed(Member("a", "123", '0', base256)), "a@512+3 ");
  std::string prefixed = Member("a", "");
  Put(prefixed, 345, "folder");
  EXPECT_THAT(Listed(prefixed), HasSubstr("checksum"));
}

TEST(Tar, WhatIsWrongIsNamed) {
  EXPECT_THAT(Listed(Member("a", "") + std::string(100, 'x')),
              AllOf(HasSubstr("offset 0x200"), HasSubstr("cut short")));
  EXPECT_THAT(Listed(Member("a", "", '0', "77777777777")),
              AllOf(HasSubstr("'a'"), HasSubstr("past the end")));
  EXPECT_THAT(Listed(Member("a", "", '0', std::string(12, '\xff'))), HasSubstr("no number"));
  EXPECT_THAT(Listed(Member("a", "", '0', "9")), HasSubstr("no number"));
  EXPECT_THAT(Listed(std::string(kTarBlock, 'x')), HasSubstr("checksum"));
  EXPECT_THAT(Listed(Member("a", "", 'S')), HasSubstr("sparse"));
  EXPECT_THAT(Listed(Member("x", "22 GNU.sparse.major=1\n", 'x') + Member("a", "")),
              HasSubstr("sparse"));
  EXPECT_THAT(Listed(Member("x", "99999999999999999999 a=b\n", 'x')), HasSubstr("malformed"));
  EXPECT_THAT(Listed(Member("x", "8 size=x", 'x')), HasSubstr("malformed"));
}

}  // namespace
}  // namespace platter
