// TLS for the server, by OpenSSL: the session between two memory buffers, the socket outside.
//
// Who may connect: with certificates (X.509), whoever trusts ours, or with verify_peer whoever
// shows one of our authority; with pre-shared keys, whoever has one of them. `authorized` narrows
// that to those who are named. TLS 1.2 at least; no resumption, so that each connection is checked
// anew.
//
// Source: "TLS support" of the NBD protocol; RFC 4279 and RFC 8446 for pre-shared keys, RFC 4514
// for the text of distinguished names.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "nbd/channel.h"

namespace platter::nbd {

struct TlsOptions {
  // A directory with server-cert.pem and server-key.pem, with verify_peer also ca-cert.pem, and
  // maybe ca-crl.pem. Empty: by keys.
  std::string certificates;
  std::string psk_file;  // lines of "user:key in hexadecimal"; empty: by certificates
  bool verify_peer = false;
  // Distinguished names of certificates ("CN=host,O=example") or users of keys; empty: anybody who
  // passes the checks above.
  std::vector<std::string> authorized;
};

class TlsContext {
 public:
  // kIo, kCorrupt with the file's name; kRefused for a certificate that is not valid now.
  static Result<std::unique_ptr<TlsContext>> Create(const TlsOptions& options);
  ~TlsContext();

  // The server's side of the TLS handshake on a socket, whose owner the caller stays. kIo; kRefused
  // with the reason for a client that is not let in. Any thread.
  Result<std::unique_ptr<Channel>> Accept(int fd, Deadline deadline) const;

 private:
  struct State;
  explicit TlsContext(std::unique_ptr<State> state);
  const std::unique_ptr<State> state_;
};

}  // namespace platter::nbd
