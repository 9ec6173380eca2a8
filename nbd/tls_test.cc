// The server's side of TLS against clients that are no programs one can install.
#include "nbd/tls.h"

#include <gtest/gtest.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <fstream>
#include <string_view>
#include <thread>

#include "tests/interop/qemu.h"

namespace platter::nbd {
namespace {

constexpr unsigned char kKey[32] = {1, 2, 3};

unsigned GiveKey(SSL*, const char*, char* identity, unsigned, unsigned char* key, unsigned) {
  std::ranges::copy(std::string_view("alice\0", 6), identity);
  std::ranges::copy(kKey, key);
  return sizeof kKey;
}

// A client that asks for new keys again and again, and reads none of the answers; each request is
// of a few bytes.
void AskForKeys(int fd, int requests) {
  std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(SSL_CTX_new(TLS_client_method()),
                                                       SSL_CTX_free);
  SSL_CTX_set_psk_client_callback(context.get(), GiveKey);
  SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION);
  std::unique_ptr<SSL, void (*)(SSL*)> ssl(SSL_new(context.get()), SSL_free);
  SSL_set_fd(ssl.get(), fd);
  ASSERT_EQ(SSL_connect(ssl.get()), 1);
  for (int i = 0; i < requests; ++i) {
    if (SSL_key_update(ssl.get(), SSL_KEY_UPDATE_REQUESTED) != 1) break;
    if (SSL_do_handshake(ssl.get()) != 1) break;  // sends it
  }
  shutdown(fd, SHUT_WR);
}

TEST(TlsTest, AClientThatNeverReadsIsNotOwedWithoutEnd) {
  signal(SIGPIPE, SIG_IGN);
  testing_support::TempFolder folder;
  std::ofstream(folder.File("keys")) << "alice:010203" << std::string(58, '0') << "\n";
  TlsOptions options;
  options.psk_file = folder.File("keys");
  auto context = TlsContext::Create(options);
  ASSERT_TRUE(context) << context.error().text();
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  Fd server(ends[0]), client(ends[1]);
  std::jthread asking([&] { AskForKeys(client.get(), 200'000); });
  auto channel = (*context)->Accept(server.get(), Deadline::clock::now() + std::chrono::minutes(1));
  ASSERT_TRUE(channel) << channel.error().text();
  std::byte bytes[1];
  auto received = (*channel)->Receive(bytes, true);
  EXPECT_FALSE(received) << "all of them were answered";
  shutdown(server.get(), SHUT_RDWR);
}

}  // namespace
}  // namespace platter::nbd
