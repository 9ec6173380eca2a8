// A connection is used by one thread at a time, since libssh's sessions are made so; several are
// opened as several pieces are wanted at once. On each the requests for one piece are sent together
// and then their answers awaited, so that a piece costs one round trip and not one for each 32 KiB.
#include "io/remote/sftp_store.h"

#include <fcntl.h>
#include <libssh/libssh.h>
#include <libssh/sftp.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/sync.h"
#include "io/remote/url.h"

namespace platter {

namespace {

constexpr std::string_view kSchemes[] = {"sftp", "ssh"};
constexpr uint32_t kRequest = 32 * 1024;  // bytes that every server sends in one answer

struct SessionDeleter {
  void operator()(ssh_session session) const {
    ssh_disconnect(session);
    ssh_free(session);
  }
};
using Session = std::unique_ptr<ssh_session_struct, SessionDeleter>;

struct SftpDeleter {
  void operator()(sftp_session sftp) const { sftp_free(sftp); }
};
struct FileDeleter {
  void operator()(sftp_file file) const { sftp_close(file); }
};
struct AttributesDeleter {
  void operator()(sftp_attributes attributes) const { sftp_attributes_free(attributes); }
};

// What the user said, for each connection.
struct Target {
  Url url;
  std::string whole;  // url as it was given
  std::string name;   // printable
  SftpOptions options;
};

Result<> CheckHost(ssh_session session, const Target& target) {
  const char* problem = "its key cannot be checked";
  switch (ssh_session_is_known_server(session)) {
    case SSH_KNOWN_HOSTS_OK: return {};
    case SSH_KNOWN_HOSTS_CHANGED:
      problem = "its key is not the one in known_hosts: it may be another machine";
      break;
    case SSH_KNOWN_HOSTS_OTHER:
      problem = "known_hosts has a key of another kind for it: it may be another machine";
      break;
    case SSH_KNOWN_HOSTS_NOT_FOUND:
    case SSH_KNOWN_HOSTS_UNKNOWN:
      problem = "known_hosts does not know it; connect once with ssh and compare the key";
      break;
    case SSH_KNOWN_HOSTS_ERROR: break;
  }
  return Fail(Code::kRefused, "'{}': host '{}' is not trusted: {}", target.name,
              Printable(target.url.host), problem);
}

Result<> LogIn(ssh_session session, const Target& target) {
  int result = ssh_userauth_none(session, nullptr);
  if (result == SSH_AUTH_SUCCESS) return {};
  if (result != SSH_AUTH_ERROR) result = ssh_userauth_publickey_auto(session, nullptr, nullptr);
  if (result != SSH_AUTH_SUCCESS && result != SSH_AUTH_ERROR && target.url.password) {
    result = ssh_userauth_password(session, nullptr, target.url.password->c_str());
  }
  if (result == SSH_AUTH_SUCCESS) return {};
  return Fail(Code::kRefused, "'{}': the server did not let us in: {}", target.name,
              Printable(ssh_get_error(session)));
}

Result<> SetOptions(ssh_session session, const Target& target) {
  const Url& url = target.url;
  const long seconds = target.options.seconds;
  bool ok = ssh_options_set(session, SSH_OPTIONS_HOST, url.host.c_str()) == 0;
  if (url.port) {
    const unsigned port = *url.port;
    ok = ok && ssh_options_set(session, SSH_OPTIONS_PORT, &port) == 0;
  }
  if (url.user) ok = ok && ssh_options_set(session, SSH_OPTIONS_USER, url.user->c_str()) == 0;
  ok = ok && ssh_options_set(session, SSH_OPTIONS_TIMEOUT, &seconds) == 0;
  for (const auto& [key, value] : url.query) {
    if (key == "known-hosts") {
      ok = ok && ssh_options_set(session, SSH_OPTIONS_KNOWNHOSTS, value.c_str()) == 0 &&
           ssh_options_set(session, SSH_OPTIONS_GLOBAL_KNOWNHOSTS, value.c_str()) == 0;
    } else if (key == "identity") {
      ok = ok && ssh_options_set(session, SSH_OPTIONS_ADD_IDENTITY, value.c_str()) == 0;
    } else {
      return Fail(Code::kOutOfRange, "'{}': '{}' is neither known-hosts nor identity", target.name,
                  Printable(key));
    }
  }
  if (ok) return {};
  return Fail(Code::kOutOfRange, "'{}': {}", target.name, Printable(ssh_get_error(session)));
}

std::string RemotePath(const Url& url) {
  if (url.path.starts_with("/~/")) return url.path.substr(3);
  return url.path;
}

class Connection {
 public:
  static Result<std::unique_ptr<Connection>> Open(const Target& target) {
    std::unique_ptr<Connection> made(new Connection(target));
    TRY(made->Connect());
    return made;
  }

  struct State {
    uint64_t size;
    std::string version;
  };
  Result<State> Look() {
    std::unique_ptr<sftp_attributes_struct, AttributesDeleter> attributes(sftp_fstat(file_.get()));
    if (!attributes) return Failed("asking for its size");
    if (!(attributes->flags & SSH_FILEXFER_ATTR_SIZE)) {
      return Fail(Code::kIo, "'{}': the server does not say its size", target_.name);
    }
    if (attributes->type != SSH_FILEXFER_TYPE_REGULAR) {
      return Fail(Code::kRefused, "'{}' is no regular file", target_.name);
    }
    return State{attributes->size, fmt::format("time {}", attributes->mtime)};
  }

  Result<> Read(uint64_t at, Bytes into) {
    struct Request {
      int id;
      uint64_t at;
      Bytes into;
    };
    std::vector<Request> requests;
    if (sftp_seek64(file_.get(), at) != 0) return Failed("seeking");
    for (Bytes rest = into; !rest.empty();) {
      Bytes part = rest.first(std::min<size_t>(rest.size(), kRequest));
      int id = sftp_async_read_begin(file_.get(), static_cast<uint32_t>(part.size()));
      if (id < 0) return Failed("reading");
      requests.push_back({id, at, part});
      at += part.size();
      rest = rest.subspan(part.size());
    }
    std::vector<Request> shorts;
    for (const Request& request : requests) {
      int count = sftp_async_read(file_.get(), request.into.data(),
                                  static_cast<uint32_t>(request.into.size()),
                                  static_cast<uint32_t>(request.id));
      if (count < 0) return Failed("reading");
      auto got = static_cast<size_t>(count);
      if (got < request.into.size()) {
        shorts.push_back({0, request.at + got, request.into.subspan(got)});
      }
    }
    for (const Request& request : shorts) TRY(ReadRest(request.at, request.into));
    return {};
  }

 private:
  explicit Connection(const Target& target) : target_(target) {}

  Result<> Connect() {
    session_.reset(ssh_new());
    if (!session_) return Fail(Code::kIo, "'{}': out of memory", target_.name);
    TRY(SetOptions(session_.get(), target_));
    if (ssh_connect(session_.get()) != SSH_OK) return Failed("connecting");
    TRY(CheckHost(session_.get(), target_));
    TRY(LogIn(session_.get(), target_));
    sftp_.reset(sftp_new(session_.get()));
    if (!sftp_ || sftp_init(sftp_.get()) != SSH_OK) return Failed("starting SFTP");
    file_.reset(sftp_open(sftp_.get(), RemotePath(target_.url).c_str(), O_RDONLY, 0));
    if (file_) return {};
    switch (sftp_get_error(sftp_.get())) {
      case SSH_FX_NO_SUCH_FILE: return FailErrno(ENOENT, "'{}'", target_.name);
      case SSH_FX_PERMISSION_DENIED: return FailErrno(EACCES, "'{}'", target_.name);
      default: return Failed("opening");
    }
  }

  // What a server that sends less than was asked for left out.
  Result<> ReadRest(uint64_t at, Bytes into) {
    if (sftp_seek64(file_.get(), at) != 0) return Failed("seeking");
    while (!into.empty()) {
      ssize_t count = sftp_read(file_.get(), into.data(), into.size());
      if (count < 0) return Failed("reading");
      if (count == 0) {
        return Fail(Code::kCorrupt, "'{}' changed on the server while it was read: it is shorter",
                    target_.name);
      }
      into = into.subspan(static_cast<size_t>(count));
    }
    return {};
  }

  std::unexpected<Error> Failed(std::string_view doing) const {
    return Fail(Code::kIo, "'{}': {}: {}", target_.name, doing,
                Printable(ssh_get_error(session_.get())));
  }

  const Target& target_;
  Session session_;
  std::unique_ptr<sftp_session_struct, SftpDeleter> sftp_;
  std::unique_ptr<sftp_file_struct, FileDeleter> file_;  // last: closed first
};

class SftpSource final : public RemoteSource {
 public:
  static Result<std::unique_ptr<RemoteSource>> Open(Target target) {
    std::unique_ptr<SftpSource> source(new SftpSource(std::move(target)));
    auto connection = TRY(Connection::Open(source->target_));
    auto state = TRY(connection->Look());
    source->size_ = state.size;
    source->version_ = state.version;
    source->idle_.push_back(std::move(connection));
    return source;
  }

  const std::string& name() const override { return target_.name; }
  const std::string& url() const override { return target_.whole; }
  uint64_t size() const override { return size_; }
  const std::string& version() const override { return version_; }
  uint64_t worthwhile() const override { return 256 * kKiB; }
  void Stop() override { stop_ = true; }

  Result<> Fetch(uint64_t at, Bytes into) override {
    for (unsigned tried = 0;; ++tried) {
      auto connection = Take();
      Result<> read;
      if (connection) {
        read = ReadWith(**connection, at, into);
        if (read) {
          std::lock_guard lock(mutex_);
          idle_.push_back(std::move(*connection));
          return {};
        }
      } else {
        read = std::unexpected(std::move(connection.error()));
      }
      if (read.error().code() != Code::kIo || tried + 1 >= target_.options.tries) return read;
      for (int step = 0; step < 10 << tried && !stop_; ++step) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    }
  }

 private:
  explicit SftpSource(Target target) : target_(std::move(target)) {}

  Result<std::unique_ptr<Connection>> Take() {
    if (stop_) return Fail(Code::kRefused, "'{}': stopped", name());
    {
      std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        auto connection = std::move(idle_.back());
        idle_.pop_back();
        return connection;
      }
    }
    auto connection = TRY(Connection::Open(target_));
    TRY(CheckSame(*connection));
    return connection;
  }

  // Looked at after the bytes came: what changes later is seen by a later read.
  Result<> ReadWith(Connection& connection, uint64_t at, Bytes into) const {
    TRY(connection.Read(at, into));
    return CheckSame(connection);
  }

  Result<> CheckSame(Connection& connection) const {
    const auto state = TRY(connection.Look());
    if (state.size == size_ && state.version == version_) return {};
    return Fail(Code::kCorrupt,
                "'{}' changed on the server while it was read: it has {} bytes at '{}', and had {} "
                "at '{}'",
                name(), state.size, state.version, size_, version_);
  }

  const Target target_;
  uint64_t size_ = 0;
  std::string version_;
  std::atomic<bool> stop_{false};
  Mutex mutex_;  // guards idle_; a leaf
  std::vector<std::unique_ptr<Connection>> idle_;
};

}  // namespace

std::span<const std::string_view> SftpOpener::schemes() const { return kSchemes; }

Result<std::unique_ptr<Store>> SftpOpener::Open(const std::string& url, bool writable) const {
  Target target{TRY(ParseUrl(url)), url, DescribeUrl(url), options_};
  if (target.url.host.empty())
    return Fail(Code::kOutOfRange, "URL '{}' names no host", target.name);
  if (RemotePath(target.url).empty()) {
    return Fail(Code::kOutOfRange, "URL '{}' names no file", target.name);
  }
  if (writable) return Fail(Code::kReadOnly, "'{}' can only be read", target.name);
  return CachedStore::Open(TRY(SftpSource::Open(std::move(target))), options_.cache);
}

}  // namespace platter
