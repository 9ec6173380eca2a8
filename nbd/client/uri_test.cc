#include "nbd/client/uri.h"

#include <gtest/gtest.h>

namespace platter::nbd {
namespace {

TEST(NbdUriTest, Transports) {
  auto uri = ParseUri("nbd://host/a%2Fb/c");
  ASSERT_TRUE(uri) << uri.error().text();
  EXPECT_EQ(uri->transport, Uri::kTcp);
  EXPECT_EQ(uri->host, "host");
  EXPECT_EQ(uri->port, 10809);
  EXPECT_EQ(uri->export_name, "a/b/c");
  EXPECT_FALSE(uri->tls);

  uri = ParseUri("nbd+unix:///disk?socket=/tmp/s");
  ASSERT_TRUE(uri) << uri.error().text();
  EXPECT_EQ(uri->transport, Uri::kUnix);
  EXPECT_EQ(uri->socket, "/tmp/s");
  EXPECT_EQ(uri->export_name, "disk");

  uri = ParseUri("nbds+vsock://3:99/?tls-psk-file=k&tls-username=me");
  ASSERT_TRUE(uri) << uri.error().text();
  EXPECT_EQ(uri->transport, Uri::kVsock);
  EXPECT_EQ(uri->cid, 3u);
  EXPECT_EQ(uri->port, 99);
  EXPECT_EQ(uri->user, "me");
  EXPECT_TRUE(uri->tls);

  uri = ParseUri("nbds://me@[::1]:1/x?tls-certificates=d&tls-hostname=h");
  ASSERT_TRUE(uri) << uri.error().text();
  EXPECT_EQ(uri->host, "::1");
  EXPECT_EQ(uri->user, "me");
  EXPECT_EQ(uri->certificates, "d");
  EXPECT_EQ(uri->tls_hostname, "h");
}

TEST(NbdUriTest, RefusesWhatMakesNoSense) {
  const std::string long_name(4097, 'x');
  for (const std::string& text :
       {std::string("nbd+unix:///x"), std::string("nbd+unix://host/x?socket=s"),
        std::string("nbd://h/x?socket=s"), std::string("nbd://h/x?unknown=1"),
        std::string("nbd://h/x?tls-psk-file=f"), std::string("nbd+vsock://host/x"),
        std::string("nbds+unix:///x?socket=s"),
        std::string("nbds://h/?tls-psk-file=f&tls-certificates=d"), "nbd://h/" + long_name}) {
    auto uri = ParseUri(text);
    ASSERT_FALSE(uri) << text;
    EXPECT_EQ(uri.error().code(), Code::kOutOfRange);
  }
}

}  // namespace
}  // namespace platter::nbd
