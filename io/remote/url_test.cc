#include "io/remote/url.h"

#include <gtest/gtest.h>

namespace platter {
namespace {

TEST(UrlTest, HasItsParts) {
  auto url = ParseUrl("NBD+unix://a%40b:s%3acret@[::1]:1080/x%20y?socket=/tmp/s&empty&z=1#end");
  ASSERT_TRUE(url) << url.error().text();
  EXPECT_EQ(url->scheme, "nbd+unix");
  EXPECT_EQ(url->user, "a@b");
  EXPECT_EQ(url->password, "s:cret");
  EXPECT_EQ(url->host, "::1");
  EXPECT_EQ(url->port, 1080);
  EXPECT_EQ(url->path, "/x y");
  EXPECT_EQ(url->query.at("socket"), "/tmp/s");
  EXPECT_EQ(url->query.at("empty"), "");
  EXPECT_EQ(url->query.at("z"), "1");
}

TEST(UrlTest, PartsMayBeMissing) {
  auto url = ParseUrl("nbd://host");
  ASSERT_TRUE(url);
  EXPECT_EQ(url->host, "host");
  EXPECT_FALSE(url->user);
  EXPECT_FALSE(url->port);
  EXPECT_EQ(url->path, "");
  url = ParseUrl("nbd+unix:///?socket=a");
  ASSERT_TRUE(url);
  EXPECT_EQ(url->host, "");
  EXPECT_EQ(url->path, "/");
}

TEST(UrlTest, RefusesWhatIsNone) {
  for (const char* text : {"disk.img", "a:b", "://x", "1a://x", "http://h:0/", "http://h:65536/",
                           "http://h:1x/", "http://[::1/", "http://h/%", "http://h/%4",
                           "http://h/%zz", "http://h/%00", "http://h/?a=%00", "http://h%00/"}) {
    auto url = ParseUrl(text);
    ASSERT_FALSE(url) << text;
    EXPECT_EQ(url.error().code(), Code::kOutOfRange) << text;
  }
}

TEST(UrlTest, SchemeOfFileNamesIsEmpty) {
  EXPECT_EQ(SchemeOf("HTTPS://x"), "https");
  EXPECT_EQ(SchemeOf("nbd+unix:///"), "nbd+unix");
  EXPECT_EQ(SchemeOf("./http://x"), "");
  EXPECT_EQ(SchemeOf("file:/x"), "");
  EXPECT_EQ(SchemeOf("a b://x"), "");
}

TEST(UrlTest, DescriptionHoldsNoSecret) {
  EXPECT_EQ(DescribeUrl("https://me:secret@host/a?token=x#y"), "https://me@host/a");
  EXPECT_EQ(DescribeUrl("sftp://host/a\x1b[1m"), "sftp://host/a\\x1b[1m");
  EXPECT_EQ(DescribeUrl("nbd+unix:///?socket=/a"), "nbd+unix:///?socket=/a");
  EXPECT_EQ(DescribeUrl("a file"), "a file");
}

TEST(UrlTest, BesideStaysInTheFolder) {
  EXPECT_EQ(*UrlBeside("https://h/a/b.img?token=1", "c d/e.img"), "https://h/a/c%20d/e.img");
  EXPECT_EQ(*UrlBeside("https://h/a/b.img", "what?.img"), "https://h/a/what%3F.img");
  for (const char* name : {"/etc/passwd", "../c", "a/../../c", ".."}) {
    auto url = UrlBeside("https://h/a/b.img", name);
    ASSERT_FALSE(url) << name;
    EXPECT_EQ(url.error().code(), Code::kRefused);
  }
  EXPECT_FALSE(UrlBeside("https://h", "a"));
}

}  // namespace
}  // namespace platter
