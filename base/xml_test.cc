#include "base/xml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace platter {
namespace {

using testing::HasSubstr;

// The events as text: "<a x=1>", "text", "</a>"; an error as "!text".
std::string Events(std::string_view document, const std::vector<std::string>& attributes = {"x"}) {
  XmlReader reader(document);
  std::string all;
  while (true) {
    auto event = reader.Next();
    if (!event.has_value()) return all + "!" + event.error().text();
    switch (*event) {
      case XmlReader::Event::kStart:
        all += "<" + std::string(reader.name());
        for (const std::string& name : attributes) {
          std::string_view value = reader.Attribute(name);
          if (!value.empty()) all += " " + name + "=" + std::string(value);
        }
        all += ">";
        break;
      case XmlReader::Event::kEnd: all += "</" + std::string(reader.name()) + ">"; break;
      case XmlReader::Event::kText: all += reader.text(); break;
      case XmlReader::Event::kDone: return all;
    }
  }
}

TEST(Xml, WhatFilesHold) {
  EXPECT_EQ(Events("\xef\xbb\xbf<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- <b> -->\n"
                   "<o:a xmlns:o='u' o:x = '1'  y=\"2\">t<b/> <c>u</c ></o:a>\n"),
            "<a x=1>t<b></b> <c>u</c></a>");
  EXPECT_EQ(Events("<a x='&lt;&#65;&#x20ac;&amp;&quot;&apos;&gt;'>&amp;lt;</a>"),
            "<a x=<A\xe2\x82\xac&\"'>>&lt;</a>");
  EXPECT_EQ(Events("<a><![CDATA[<b>&lt;]]></a>"), "<a><b>&lt;</a>");
  EXPECT_EQ(Events("<?xml version='1.0' encoding='utf-8'?><a/>"), "<a></a>");
}

TEST(Xml, WhatIsWrongIsNamed) {
  EXPECT_THAT(Events(""), HasSubstr("no element"));
  EXPECT_THAT(Events("<a>"), HasSubstr("ends within"));
  EXPECT_THAT(Events("<a>\n</b>"), HasSubstr("line 2: an end tag that matches no start"));
  EXPECT_THAT(Events("<a/><a/>"), HasSubstr("second root"));
  EXPECT_THAT(Events("<a/>x"), HasSubstr("outside"));
  EXPECT_THAT(Events("<a x>"), HasSubstr("without a value"));
  EXPECT_THAT(Events("<a x=1>"), HasSubstr("without quotes"));
  EXPECT_THAT(Events("<a x='1>"), HasSubstr("does not end"));
  EXPECT_THAT(Events("<a x='1'y='2'/>"), HasSubstr("no attribute"));
  EXPECT_THAT(Events("<a>&b;</a>"), HasSubstr("not known"));
  EXPECT_THAT(Events("<a>&#xd800;</a>"), HasSubstr("not known"));
  EXPECT_THAT(Events("<a>&#0;</a>"), HasSubstr("not known"));
  EXPECT_THAT(Events("<"), HasSubstr("a name is missing"));
  EXPECT_THAT(Events("<a"), HasSubstr("does not end"));
  EXPECT_THAT(Events("<!--"), HasSubstr("does not end"));
}

TEST(Xml, WhatIsNotRead) {
  EXPECT_THAT(Events("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"), HasSubstr("DOCTYPE"));
  EXPECT_THAT(Events("<?xml version='1.0' encoding='UTF-16'?><a/>"), HasSubstr("UTF-8"));
  std::string deep;
  for (size_t i = 0; i < 65; ++i) deep += "<a>";
  EXPECT_THAT(Events(deep), HasSubstr("more than 64"));
}

}  // namespace
}  // namespace platter
