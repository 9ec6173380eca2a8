#include "nbd/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <map>

#include "base/math.h"
#include "io/buffer.h"

namespace platter::nbd {
namespace {

constexpr size_t kCipherText = 64 * kKiB;  // received at once
constexpr size_t kPlainText = 64 * kKiB;   // encrypted at once
constexpr size_t kShortestKey = 16;        // bytes of a pre-shared key
// Encrypted bytes that wait for the client, beyond what Send has taken: answers to messages of TLS
// itself, of which a client can send any number without ever reading.
constexpr size_t kMostOwed = 256 * kKiB;

template <auto kFree>
struct Freer {
  template <class T>
  void operator()(T* p) const {
    kFree(p);
  }
};
using SslPtr = std::unique_ptr<SSL, Freer<SSL_free>>;
using ContextPtr = std::unique_ptr<SSL_CTX, Freer<SSL_CTX_free>>;
using X509Ptr = std::unique_ptr<X509, Freer<X509_free>>;
using BioPtr = std::unique_ptr<BIO, Freer<BIO_free>>;

// What OpenSSL says went wrong last, as one line; forgets all of it.
std::string LastError() {
  unsigned long code = ERR_peek_last_error();
  ERR_clear_error();
  const char* reason = code ? ERR_reason_error_string(code) : nullptr;
  return reason ? reason : "unknown error";
}

// "CN=host,O=example" (RFC 4514).
std::string NameOf(X509* certificate) {
  BioPtr out(BIO_new(BIO_s_mem()));
  X509_NAME_print_ex(out.get(), X509_get_subject_name(certificate), 0, XN_FLAG_RFC2253);
  char* text = nullptr;
  long size = BIO_get_mem_data(out.get(), &text);
  return std::string(text, static_cast<size_t>(size));
}

class TlsChannel final : public Channel {
 public:
  TlsChannel(int fd, SslPtr ssl) : fd_(fd), ssl_(std::move(ssl)), received_(kCipherText) {
    SSL_set_bio(ssl_.get(), BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    SSL_set_accept_state(ssl_.get());
    SSL_set_app_data(ssl_.get(), &user_);
  }

  Result<> Handshake(Deadline deadline) {
    while (true) {
      ERR_clear_error();
      const int done = SSL_do_handshake(ssl_.get());
      const int why = SSL_get_error(ssl_.get(), done);
      std::string reason = done == 1 || why == SSL_ERROR_WANT_READ ? "" : LastError();
      // An alert says the client why we do not go on.
      TRY(SendCipherText(deadline));
      if (done == 1) return {};
      if (!reason.empty()) return Fail(Code::kRefused, "handshake: {}", reason);
      if (!TRY(WaitFor(fd_, POLLIN, deadline))) {
        return Fail(Code::kIo, "the handshake took too long");
      }
      auto count = TRY(ReceiveCipherText(false));
      if (count && *count == 0) return Fail(Code::kIo, "the client left in the handshake");
    }
  }

  // Who the client is, after the handshake; empty if it need not say. With keys there are no
  // certificates, so whoever got through has the key that was looked up.
  std::string Identity() const {
    X509Ptr certificate(SSL_get1_peer_certificate(ssl_.get()));
    return certificate ? NameOf(certificate.get()) : user_;
  }

  Result<std::optional<size_t>> Receive(Bytes into, bool wait) override {
    while (true) {
      if (BIO_pending(Outgoing()) > static_cast<int>(kMostOwed)) {
        return Fail(Code::kIo, "TLS: the client asks for much and does not read it");
      }
      size_t count = 0;
      ERR_clear_error();
      if (SSL_read_ex(ssl_.get(), into.data(), into.size(), &count) == 1) return count;
      const int why = SSL_get_error(ssl_.get(), 0);
      TRY(TrySendCipherText());
      if (why == SSL_ERROR_ZERO_RETURN) return size_t{0};
      if (why != SSL_ERROR_WANT_READ) return Fail(Code::kIo, "TLS: {}", LastError());
      auto more = TRY(ReceiveCipherText(wait));
      if (!more) return std::nullopt;
      if (*more == 0) return size_t{0};
    }
  }

  Result<size_t> Send(std::span<const iovec> from, bool) override {
    TRY(TrySendCipherText());
    if (sending()) return size_t{0};
    size_t taken = 0;
    for (const iovec& part : from) {
      if (taken == kPlainText) break;
      size_t count = 0;
      ERR_clear_error();
      if (SSL_write_ex(ssl_.get(), part.iov_base, std::min(part.iov_len, kPlainText - taken),
                       &count) != 1) {
        return Fail(Code::kIo, "TLS: {}", LastError());
      }
      taken += count;
      if (count < part.iov_len) break;
    }
    TRY(TrySendCipherText());
    return taken;
  }

  Result<size_t> SendFile(const FileBytes&) override {
    return Fail(Code::kUnsupported, "TLS has to see what it sends");
  }
  bool sends_files() const override { return false; }

  bool sending() const override { return BIO_pending(Outgoing()) > 0; }
  void Close() override {
    SSL_shutdown(ssl_.get());
    (void)TrySendCipherText().has_value();
    shutdown(fd_, SHUT_WR);
  }
  int fd() const override { return fd_; }

 private:
  BIO* Outgoing() const { return SSL_get_wbio(ssl_.get()); }

  // As Channel::Receive, of encrypted bytes, which OpenSSL then has.
  Result<std::optional<size_t>> ReceiveCipherText(bool wait) {
    while (true) {
      ssize_t count = recv(fd_, received_.data(), received_.size(), wait ? 0 : MSG_DONTWAIT);
      if (count > 0) {
        BIO_write(SSL_get_rbio(ssl_.get()), received_.data(), static_cast<int>(count));
      }
      if (count >= 0) return static_cast<size_t>(count);
      if (errno == EAGAIN && !wait) return std::nullopt;
      if (errno != EINTR && errno != EAGAIN) return FailErrno(errno, "receiving");
    }
  }

  // As much as the socket takes now.
  Result<> TrySendCipherText() {
    while (sending()) {
      char* data = nullptr;
      const long size = BIO_get_mem_data(Outgoing(), &data);
      ssize_t count = send(fd_, data, static_cast<size_t>(size), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno == EAGAIN) return {};
      if (count < 0) return FailErrno(errno, "sending");
      Drop(static_cast<size_t>(count));
    }
    return {};
  }

  Result<> SendCipherText(Deadline deadline) {
    while (true) {
      TRY(TrySendCipherText());
      if (!sending()) return {};
      if (!TRY(WaitFor(fd_, POLLOUT, deadline))) {
        return Fail(Code::kIo, "the handshake took too long");
      }
    }
  }

  // Takes the first bytes out of what OpenSSL has for the socket.
  void Drop(size_t size) {
    std::array<char, 4096> sink;
    while (size > 0) {
      const int count =
          BIO_read(Outgoing(), sink.data(), static_cast<int>(std::min(size, sink.size())));
      if (count <= 0) return;
      size -= static_cast<size_t>(count);
    }
  }

  const int fd_;
  const SslPtr ssl_;
  std::string user_;  // whose key was looked up
  Buffer received_;
};

Result<std::map<std::string, std::vector<unsigned char>>> ReadKeys(const std::string& path) {
  std::ifstream file(path);
  if (!file) return FailErrno(errno, "keys '{}'", Printable(path, 4096));
  std::map<std::string, std::vector<unsigned char>> keys;
  std::string line;
  for (size_t number = 1; std::getline(file, line); ++number) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty() || line[0] == '#') continue;
    const size_t colon = line.find(':');
    long size = 0;
    unsigned char* key =
        colon == line.npos ? nullptr : OPENSSL_hexstr2buf(line.c_str() + colon + 1, &size);
    if (!key || colon == 0) {
      OPENSSL_free(key);
      return Fail(Code::kCorrupt, "keys '{}': line {} is not user:hexadecimal",
                  Printable(path, 4096), number);
    }
    keys[line.substr(0, colon)].assign(key, key + size);
    OPENSSL_clear_free(key, static_cast<size_t>(size));
    if (static_cast<size_t>(size) < kShortestKey) {
      return Fail(Code::kRefused, "keys '{}': line {}: a key of less than {} bytes",
                  Printable(path, 4096), number, kShortestKey);
    }
  }
  if (keys.empty()) return Fail(Code::kCorrupt, "keys '{}': there is none", Printable(path, 4096));
  return keys;
}

Result<> CheckDates(SSL_CTX* context, const std::string& path) {
  X509* certificate = SSL_CTX_get0_certificate(context);
  if (X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0) {
    return Fail(Code::kRefused, "certificate '{}' has expired", Printable(path, 4096));
  }
  if (X509_cmp_current_time(X509_get0_notBefore(certificate)) > 0) {
    return Fail(Code::kRefused, "certificate '{}' is not valid yet", Printable(path, 4096));
  }
  return {};
}

Result<> LoadCertificates(SSL_CTX* context, const std::string& folder) {
  const std::string certificate = folder + "/server-cert.pem", key = folder + "/server-key.pem";
  if (SSL_CTX_use_certificate_chain_file(context, certificate.c_str()) != 1) {
    return Fail(Code::kIo, "certificate '{}': {}", Printable(certificate, 4096), LastError());
  }
  if (SSL_CTX_use_PrivateKey_file(context, key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(context) != 1) {
    return Fail(Code::kIo, "key '{}': {}", Printable(key, 4096), LastError());
  }
  return CheckDates(context, certificate);
}

// Clients have to show a certificate of the authority.
Result<> VerifyPeers(SSL_CTX* context, const std::string& folder) {
  const std::string authority = folder + "/ca-cert.pem", revoked = folder + "/ca-crl.pem";
  if (SSL_CTX_load_verify_locations(context, authority.c_str(), nullptr) != 1) {
    return Fail(Code::kIo, "authority '{}': {}", Printable(authority, 4096), LastError());
  }
  SSL_CTX_set_client_CA_list(context, SSL_load_client_CA_file(authority.c_str()));
  if (access(revoked.c_str(), F_OK) == 0) {
    X509_STORE* store = SSL_CTX_get_cert_store(context);
    if (X509_STORE_load_locations(store, revoked.c_str(), nullptr) != 1) {
      return Fail(Code::kIo, "revocations '{}': {}", Printable(revoked, 4096), LastError());
    }
    X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
  }
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  return {};
}

}  // namespace

struct TlsContext::State {
  ContextPtr context;
  std::map<std::string, std::vector<unsigned char>> keys;
  std::vector<std::string> authorized;

  // OpenSSL's callback: the key of `user`; 0 if there is none.
  static unsigned FindKey(SSL* ssl, const char* user, unsigned char* key, unsigned room) {
    auto* state = static_cast<State*>(SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl)));
    auto found = state->keys.find(user ? user : "");
    if (found == state->keys.end() || found->second.size() > room) return 0;
    std::ranges::copy(found->second, key);
    *static_cast<std::string*>(SSL_get_app_data(ssl)) = found->first;
    return static_cast<unsigned>(found->second.size());
  }
};

TlsContext::TlsContext(std::unique_ptr<State> state) : state_(std::move(state)) {}
TlsContext::~TlsContext() = default;

Result<std::unique_ptr<TlsContext>> TlsContext::Create(const TlsOptions& options) {
  if (options.certificates.empty() && options.psk_file.empty()) {
    return Fail(Code::kOutOfRange, "TLS needs certificates or pre-shared keys");
  }
  if (!options.certificates.empty() && !options.psk_file.empty()) {
    return Fail(Code::kOutOfRange, "TLS is either by certificates or by pre-shared keys");
  }
  if (options.verify_peer && options.certificates.empty()) {
    return Fail(Code::kOutOfRange, "verifying clients needs certificates");
  }
  auto state = std::make_unique<State>();
  state->authorized = options.authorized;
  state->context.reset(SSL_CTX_new(TLS_server_method()));
  SSL_CTX* context = state->context.get();
  if (!context) return Fail(Code::kIo, "OpenSSL: {}", LastError());
  SSL_CTX_set_app_data(context, state.get());
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION |
                                   SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_dh_auto(context, 1);
  if (!options.certificates.empty()) TRY(LoadCertificates(context, options.certificates));
  if (options.verify_peer) TRY(VerifyPeers(context, options.certificates));
  if (!options.psk_file.empty()) {
    state->keys = TRY(ReadKeys(options.psk_file));
    SSL_CTX_set_psk_server_callback(context, State::FindKey);
  }
  return std::unique_ptr<TlsContext>(new TlsContext(std::move(state)));
}

Result<std::unique_ptr<Channel>> TlsContext::Accept(int fd, Deadline deadline) const {
  SslPtr ssl(SSL_new(state_->context.get()));
  if (!ssl) return Fail(Code::kIo, "OpenSSL: {}", LastError());
  auto channel = std::make_unique<TlsChannel>(fd, std::move(ssl));
  TRY(channel->Handshake(deadline));
  if (!state_->authorized.empty()) {
    const std::string who = channel->Identity();
    if (std::ranges::find(state_->authorized, who) == state_->authorized.end()) {
      return Fail(Code::kRefused, "'{}' is not authorized", Printable(who));
    }
  }
  return channel;
}

}  // namespace platter::nbd
