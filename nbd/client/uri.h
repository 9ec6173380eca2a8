// Where an NBD server is and which export of it is meant.
//
//   nbd://HOST[:PORT]/EXPORT              TCP
//   nbd+unix:///EXPORT?socket=PATH        Unix socket
//   nbd+vsock://CID[:PORT]/EXPORT         to or from a virtual machine
//   nbds://, nbds+unix://, nbds+vsock://  the same with TLS, and never without
//
// With TLS: "?tls-certificates=DIR" names a folder with ca-cert.pem and, if the server wants to
// know who we are, client-cert.pem and client-key.pem; "?tls-psk-file=FILE" a list of USER:KEY (in
// hexadecimal), of which the URI's user is taken; "?tls-hostname=NAME" who the server has to be
// where that is not HOST. Without any, the system's certificate authorities are trusted.
//
// Source: doc/uri.md of NetworkBlockDevice/nbd; the names with "tls-" are libnbd's.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace platter::nbd {

struct Uri {
  enum Transport : uint8_t { kTcp, kUnix, kVsock } transport = kTcp;
  std::string name;    // the whole, printable, without a password
  std::string host;    // kTcp
  std::string socket;  // kUnix
  uint32_t cid = 0;    // kVsock
  uint16_t port = 0;   // kTcp, kVsock
  std::string export_name;
  bool tls = false;
  std::string user;  // of the pre-shared key; empty: the name under which we are logged in
  std::string certificates, psk_file;  // paths; empty: none
  std::string tls_hostname;
};

// kOutOfRange.
Result<Uri> ParseUri(const std::string& text);

}  // namespace platter::nbd
