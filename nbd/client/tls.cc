// TLS for the client, by OpenSSL.
//
// OpenSSL's connection must not be used by two threads at once, while one of ours reads and another
// writes. So the socket does not block, each call into OpenSSL holds a lock, and waiting for the
// socket is done without it.
#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pwd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstring>
#include <fstream>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/sync.h"
#include "nbd/client/stream.h"

namespace platter::nbd {

namespace {

struct ContextDeleter {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
using Context = std::unique_ptr<SSL_CTX, ContextDeleter>;
struct SslDeleter {
  void operator()(SSL* ssl) const { SSL_free(ssl); }
};
using Ssl = std::unique_ptr<SSL, SslDeleter>;

// What OpenSSL's last call in this thread complained about.
std::string Complaint() {
  unsigned long code = ERR_peek_last_error();
  ERR_clear_error();
  if (code == 0) return "the connection was closed";
  const char* reason = ERR_reason_error_string(code);
  return reason ? reason : fmt::format("error {:#x}", code);
}

struct PreSharedKey {
  std::string user;
  std::vector<unsigned char> key;
};

std::string LoginName() {
  const passwd* entry = getpwuid(geteuid());
  return entry ? entry->pw_name : "";
}

Result<PreSharedKey> ReadKey(const Uri& uri) {
  const std::string user = uri.user.empty() ? LoginName() : uri.user;
  std::ifstream file(uri.psk_file);
  if (!file) return FailErrno(errno, "tls-psk-file '{}'", Printable(uri.psk_file));
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with(user + ":")) continue;
    long length = 0;
    const char* hex = line.c_str() + user.size() + 1;
    unsigned char* bytes = OPENSSL_hexstr2buf(hex, &length);
    if (!bytes || length == 0 || length > PSK_MAX_PSK_LEN) {
      OPENSSL_free(bytes);
      return Fail(Code::kOutOfRange, "tls-psk-file '{}': the key of '{}' is not hexadecimal",
                  Printable(uri.psk_file), Printable(user));
    }
    PreSharedKey key{user, {bytes, bytes + length}};
    OPENSSL_free(bytes);
    return key;
  }
  return Fail(Code::kRefused, "tls-psk-file '{}' has no key of '{}'", Printable(uri.psk_file),
              Printable(user));
}

unsigned GiveKey(SSL* ssl, const char*, char* identity, unsigned most_identity, unsigned char* into,
                 unsigned most) {
  const auto& key = *static_cast<const PreSharedKey*>(SSL_get_app_data(ssl));
  if (key.user.size() >= most_identity || key.key.size() > most) return 0;
  std::memcpy(identity, key.user.c_str(), key.user.size() + 1);
  std::ranges::copy(key.key, into);
  return static_cast<unsigned>(key.key.size());
}

Result<> UseCertificates(SSL_CTX* context, const Uri& uri) {
  if (uri.certificates.empty()) {
    if (SSL_CTX_set_default_verify_paths(context) == 1) return {};
    return Fail(Code::kIo, "the system's certificates: {}", Complaint());
  }
  const std::string authority = uri.certificates + "/ca-cert.pem";
  if (SSL_CTX_load_verify_file(context, authority.c_str()) != 1) {
    return Fail(Code::kIo, "'{}': {}", Printable(authority), Complaint());
  }
  const std::string own = uri.certificates + "/client-cert.pem";
  const std::string key = uri.certificates + "/client-key.pem";
  if (access(own.c_str(), F_OK) != 0) return {};
  if (SSL_CTX_use_certificate_chain_file(context, own.c_str()) != 1) {
    return Fail(Code::kIo, "'{}': {}", Printable(own), Complaint());
  }
  if (SSL_CTX_use_PrivateKey_file(context, key.c_str(), SSL_FILETYPE_PEM) != 1) {
    return Fail(Code::kIo, "'{}': {}", Printable(key), Complaint());
  }
  return {};
}

Result<Context> MakeContext(const Uri& uri) {
  Context context(SSL_CTX_new(TLS_client_method()));
  if (!context) return Fail(Code::kIo, "{}", Complaint());
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_mode(context.get(),
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  if (uri.psk_file.empty()) {
    SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
    TRY(UseCertificates(context.get(), uri));
  } else {
    // Knowing the key is what proves the server to be the right one: nothing without it is offered.
    SSL_CTX_set_cipher_list(context.get(), "kECDHEPSK:kDHEPSK:kPSK");
    SSL_CTX_set_verify(context.get(), SSL_VERIFY_NONE, nullptr);
    SSL_CTX_set_psk_client_callback(context.get(), GiveKey);
  }
  return context;
}

class TlsStream final : public Stream {
 public:
  TlsStream(std::unique_ptr<Stream> plain, Context context, PreSharedKey key)
      : plain_(std::move(plain)),
        context_(std::move(context)),
        key_(std::move(key)),
        ssl_(SSL_new(context_.get())) {
    fcntl(fd(), F_SETFL, fcntl(fd(), F_GETFL) | O_NONBLOCK);
  }
  ~TlsStream() override {
    std::lock_guard lock(mutex_);
    if (SSL_is_init_finished(ssl_.get())) SSL_shutdown(ssl_.get());
    ERR_clear_error();
  }

  Result<> Handshake(const Uri& uri) {
    if (!ssl_ || SSL_set_fd(ssl_.get(), fd()) != 1) return Fail(Code::kIo, "TLS: {}", Complaint());
    SSL_set_app_data(ssl_.get(), const_cast<PreSharedKey*>(&key_));
    if (uri.psk_file.empty())
      TRY(ExpectHost(uri.tls_hostname.empty() ? uri.host : uri.tls_hostname));
    auto step = [this] { return SSL_connect(ssl_.get()); };
    auto connected = Drive(step);
    if (long verdict = SSL_get_verify_result(ssl_.get());
        verdict != X509_V_OK && key_.key.empty()) {
      return Fail(Code::kRefused, "TLS: the server's certificate is not accepted: {}",
                  X509_verify_cert_error_string(verdict));
    }
    if (!connected && connected.error().code() == Code::kIo &&
        connected.error().errno_value() == 0) {
      return Fail(Code::kRefused, "TLS: {}", connected.error().text());
    }
    TRY(std::move(connected));
    // In TLS 1.3 a server may have gone on without the key.
    if (!key_.key.empty() && SSL_get0_peer_certificate(ssl_.get())) {
      return Fail(Code::kRefused, "TLS: the server does not know the key and shows a certificate");
    }
    return {};
  }

  Result<size_t> ReadSome(Bytes into) override {
    const int most = static_cast<int>(std::min<size_t>(into.size(), INT_MAX));
    return Drive([&] { return SSL_read(ssl_.get(), into.data(), most); });
  }

  using Stream::Write;
  Result<> Write(std::span<const iovec> from) override {
    for (const iovec& one : from) {
      ConstBytes rest(static_cast<const std::byte*>(one.iov_base), one.iov_len);
      while (!rest.empty()) {
        const int most = static_cast<int>(std::min<size_t>(rest.size(), 1 << 20));
        rest = rest.subspan(TRY(Drive([&] { return SSL_write(ssl_.get(), rest.data(), most); })));
      }
    }
    return {};
  }

  void Shutdown() override { plain_->Shutdown(); }
  void SetPatience(std::chrono::milliseconds patience) override { patience_ = patience; }
  int fd() const override { return plain_->fd(); }

 private:
  Result<> ExpectHost(const std::string& host) {
    unsigned char address[16];
    const bool numeric = inet_pton(AF_INET, host.c_str(), address) == 1 ||
                         inet_pton(AF_INET6, host.c_str(), address) == 1;
    X509_VERIFY_PARAM* rules = SSL_get0_param(ssl_.get());
    bool ok = numeric ? X509_VERIFY_PARAM_set1_ip_asc(rules, host.c_str()) == 1
                      : SSL_set1_host(ssl_.get(), host.c_str()) == 1 &&
                            SSL_set_tlsext_host_name(ssl_.get(), host.c_str()) == 1;
    if (ok) return {};
    return Fail(Code::kOutOfRange, "TLS: '{}' is no name of a host", Printable(host));
  }

  // Repeats `step`, a call of OpenSSL's, until it is through; waits for the socket in between.
  template <class Step>
  Result<size_t> Drive(Step step) {
    while (true) {
      std::unique_lock lock(mutex_);
      ERR_clear_error();
      int result = step();
      if (result > 0) return static_cast<size_t>(result);
      const int why = SSL_get_error(ssl_.get(), result);
      const int error = errno;
      if (why == SSL_ERROR_ZERO_RETURN) return Fail(Code::kIo, "the server closed the connection");
      if (why == SSL_ERROR_SYSCALL && error != 0) return FailErrno(error, "TLS");
      if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) {
        return Fail(Code::kIo, "{}", Complaint());
      }
      lock.unlock();
      TRY(WaitForSocket(why == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT));
    }
  }

  Result<> WaitForSocket(short events) const {
    const auto patience = patience_.load();
    const int timeout = patience.count() > 0 ? static_cast<int>(patience.count()) : -1;
    pollfd one{.fd = fd(), .events = events, .revents = 0};
    int count = poll(&one, 1, timeout);
    if (count > 0 || (count < 0 && errno == EINTR)) return {};
    return FailErrno(count == 0 ? ETIMEDOUT : errno, "waiting for the server");
  }

  const std::unique_ptr<Stream> plain_;
  const Context context_;
  const PreSharedKey key_;
  std::atomic<std::chrono::milliseconds> patience_{std::chrono::milliseconds(0)};
  Mutex mutex_;  // guards ssl_; a leaf, never held while waiting
  const Ssl ssl_;
};

}  // namespace

Result<std::unique_ptr<Stream>> StartTls(std::unique_ptr<Stream> plain, const Uri& uri) {
  PreSharedKey key;
  if (!uri.psk_file.empty()) key = TRY(ReadKey(uri));
  auto stream =
      std::make_unique<TlsStream>(std::move(plain), TRY(MakeContext(uri)), std::move(key));
  stream->SetPatience(std::chrono::seconds(20));
  TRY(stream->Handshake(uri));
  return stream;
}

}  // namespace platter::nbd
