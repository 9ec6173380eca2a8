#include "nbd/client/uri.h"

#include <charconv>
#include <utility>

#include "base/bytes.h"
#include "io/remote/url.h"
#include "nbd/nbd_wire.h"

namespace platter::nbd {

namespace {

Result<> TakeTransport(const Url& url, Uri& uri) {
  std::string_view scheme = url.scheme;
  uri.tls = scheme.starts_with("nbds");
  scheme.remove_prefix(uri.tls ? 4 : 3);
  if (scheme.empty()) {
    uri.transport = Uri::kTcp;
    uri.host = url.host.empty() ? "localhost" : url.host;
  } else if (scheme == "+unix") {
    uri.transport = Uri::kUnix;
    if (!url.host.empty() || url.port) {
      return Fail(Code::kOutOfRange, "a Unix socket has no host: nbd+unix:///EXPORT?socket=PATH");
    }
  } else {
    uri.transport = Uri::kVsock;
    auto [end, error] =
        std::from_chars(url.host.data(), url.host.data() + url.host.size(), uri.cid);
    if (error != std::errc() || end != url.host.data() + url.host.size()) {
      return Fail(Code::kOutOfRange, "'{}' is no number of a virtual machine (CID)",
                  Printable(url.host));
    }
  }
  uri.port = url.port.value_or(kDefaultPort);
  return {};
}

Result<> TakeQuery(const Url& url, Uri& uri) {
  const std::pair<std::string_view, std::string*> known[] = {
      {"socket", &uri.socket},         {"tls-certificates", &uri.certificates},
      {"tls-psk-file", &uri.psk_file}, {"tls-hostname", &uri.tls_hostname},
      {"tls-username", &uri.user},
  };
  for (const auto& [key, value] : url.query) {
    std::string* place = nullptr;
    for (const auto& [name, member] : known) {
      if (key == name) place = member;
    }
    if (!place || value.empty()) {
      return Fail(Code::kOutOfRange, "'{}={}' is not understood", Printable(key), Printable(value));
    }
    if (key.starts_with("tls-") && !uri.tls) {
      return Fail(Code::kOutOfRange, "'{}' is for nbds, which is nbd with TLS", key);
    }
    *place = value;
  }
  return {};
}

Result<> Check(const Uri& uri) {
  if ((uri.transport == Uri::kUnix) != !uri.socket.empty()) {
    return Fail(
        Code::kOutOfRange, "{}",
        uri.socket.empty() ? "give the socket as ?socket=PATH" : "?socket= is for nbd+unix");
  }
  if (!uri.certificates.empty() && !uri.psk_file.empty()) {
    return Fail(Code::kOutOfRange, "tls-certificates and tls-psk-file exclude one another");
  }
  const bool named = uri.transport == Uri::kTcp || !uri.tls_hostname.empty();
  if (uri.tls && uri.psk_file.empty() && !named) {
    return Fail(Code::kOutOfRange, "say with ?tls-hostname= who the server has to be");
  }
  if (uri.export_name.size() > kMostString) {
    return Fail(Code::kOutOfRange, "the export's name is longer than {} bytes", kMostString);
  }
  return {};
}

Result<> Fill(const Url& url, Uri& uri) {
  TRY(TakeTransport(url, uri));
  if (url.user) uri.user = *url.user;
  TRY(TakeQuery(url, uri));
  uri.export_name = url.path.starts_with('/') ? url.path.substr(1) : url.path;
  return Check(uri);
}

}  // namespace

Result<Uri> ParseUri(const std::string& text) {
  const Url url = TRY(ParseUrl(text));
  Uri uri;
  uri.name = DescribeUrl(text);
  TRY_AS(fmt::format("URL '{}'", uri.name), Fill(url, uri));
  return uri;
}

}  // namespace platter::nbd
