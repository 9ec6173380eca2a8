// platter serve: images as NBD exports.
#include <CLI/CLI.hpp>
#include <unistd.h>

#include <filesystem>
#include <mutex>

#include "base/size.h"
#include "base/sync.h"
#include "cow/scratch.h"
#include "nbd/image_exports.h"
#include "nbd/metrics.h"
#include "nbd/server.h"
#include "tools/command.h"
#include "tools/daemon.h"
#include "tools/image_options.h"

namespace platter {
namespace {

// Removes the socket files that it was told of.
class SocketFiles {
 public:
  ~SocketFiles() {
    for (const std::string& path : paths_) unlink(path.c_str());
  }
  void Add(const nbd::Listener& listener) {
    if (!listener.unlink.empty()) paths_.push_back(listener.unlink);
  }

 private:
  std::vector<std::string> paths_;
};

class ServeCommand : public Command {
 public:
  std::string_view name() const override { return "serve"; }
  std::string_view summary() const override {
    return "Serve images over NBD: whole, by partition, and as snapshots";
  }
  std::string_view examples() const override {
    return "  platter serve disk.vmdk                         to this machine, port 10809\n"
           "  platter serve --socket /run/disk.sock --writable disk.qcow2\n"
           "  platter serve --overlay disk.qcow2              writable, and nothing is kept\n"
           "  platter serve a.vmdk b.vhdx                     exports 'a', 'a/p1', 'b', "
           "'b@monday'\n"
           "  platter serve --listen '*:10809' --tls-certificates /etc/pki/platter "
           "--tls-verify-peer disk.vdi\n"
           "  platter serve --metrics 127.0.0.1:9100 --stats disk.qcow2\n"
           "To look at it: nbdinfo --list nbd://localhost, or\n"
           "  qemu-img info 'nbd+unix:///disk?socket=/run/disk.sock'\n"
           "SIGTERM and SIGINT end it in order: what was received is answered, disks are "
           "flushed.\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    DeclareExports(app);
    DeclareSockets(app);
    DeclareTls(app);
    app.add_option("--max-connections", server_.most_connections,
                   "Clients at a time; default 128. A further one is let go at once")
        ->type_name("NUMBER")
        ->check(CLI::Range(1, 100000));
    app.add_option("--window", window_,
                   "Bytes of requests and replies that a client may have in flight; default 16M")
        ->type_name("SIZE");
    app.add_option("--handshake-limit", handshake_seconds_,
                   "Seconds that a client has to choose an export; default 10")
        ->type_name("SECONDS")
        ->check(CLI::Range(1, 3600));
    app.add_option("--workers", server_.workers,
                   "Threads for requests that have to wait; default 16")
        ->type_name("NUMBER")
        ->check(CLI::Range(1, 1024));
    app.add_flag("--stats", stats_, "At the end, print what was done as JSON");
    app.add_option("--metrics", metrics_,
                   "Answer HTTP on a socket (a path, or HOST:PORT): /metrics for Prometheus, "
                   "/stats as JSON")
        ->type_name("WHERE")
        ->allow_extra_args(false);
    app.add_flag("-q,--quiet", image_.quiet, "Print errors only");
    app.add_option("IMAGE", paths_, "Images; the first is the default export too")->required();
  }

  int Run(Console& console) override {
    Result<int> done = Serve(console);
    if (done) return *done;
    console.Report(done.error());
    return 1;
  }

 private:
  void DeclareExports(CLI::App& app) {
    app.add_flag("-w,--writable", writable_, "Let clients write");
    app.add_flag("--overlay", overlay_,
                 "Let clients write, into a temporary file (in TMPDIR): the images stay as they "
                 "are");
    app.add_option("-x,--export-name", names_,
                   "Name of the export; once for each image, in their order. Without it, the "
                   "file's name without its ending")
        ->type_name("NAME")
        ->allow_extra_args(false);
    app.add_flag("--rotational", rotational_, "Tell clients that seeking is slow");
  }

  void DeclareSockets(CLI::App& app) {
    auto several = [&](const char* names, std::vector<std::string>& into, const char* help,
                       const char* type) {
      app.add_option(names, into, help)->type_name(type)->allow_extra_args(false);
    };
    several("-k,--socket", sockets_, "Listen on a unix socket", "PATH");
    several("--listen", addresses_,
            "Listen on HOST:PORT; no HOST is this machine only, * everywhere; default port 10809",
            "HOST:PORT");
    app.add_option("--vsock", vsocks_, "Listen for this machine's own guests")
        ->type_name("PORT")
        ->allow_extra_args(false);
    app.add_flag("--exit-after-last", server_.exit_after_last, "End when the last client leaves");
    app.add_option("--pid-file", pid_file_, "Write the process id there once clients can connect")
        ->type_name("FILE");
    app.add_flag("--fork", fork_, "Go on in the background once clients can connect");
  }

  void DeclareTls(CLI::App& app) {
    app.add_option("--tls", tls_,
                   "require (default with --tls-certificates or --tls-psk), on (clients may do "
                   "without), off")
        ->type_name("MODE")
        ->check(CLI::IsMember({"require", "on", "off"}));
    app.add_option("--tls-certificates", tls_options_.certificates,
                   "Directory with server-cert.pem, server-key.pem, and ca-cert.pem")
        ->type_name("DIR");
    app.add_option("--tls-psk", tls_options_.psk_file, "Pre-shared keys: lines of user:hexadecimal")
        ->type_name("FILE");
    app.add_flag("--tls-verify-peer", tls_options_.verify_peer,
                 "Clients have to show a certificate of the authority in ca-cert.pem");
    app.add_option("--authz", tls_options_.authorized,
                   "Let in only this distinguished name (or user of a pre-shared key)")
        ->type_name("NAME")
        ->allow_extra_args(false);
  }

  // The exit code.
  Result<int> Serve(Console& console) {
    TRY(CheckOptions());
    std::vector<nbd::Listener> listeners = TRY(nbd::TakeActivated());
    Background background;
    if (fork_) {
      int exit_code = -1;
      background = TRY(Background::Fork(exit_code));
      if (exit_code >= 0) return exit_code;
    }
    StopSignals stop;
    PidFile pid_file;  // gone last, when everything is closed
    auto tls = TRY(MakeTls());
    nbd::ImageExports exports;
    for (size_t i = 0; i < paths_.size(); ++i) {
      TRY(exports.Add(TRY(OpenImage(paths_[i], i < names_.size() ? names_[i] : "", console))));
    }
    SocketFiles files;
    TRY(Listen(listeners, files, console));

    nbd::Server server(exports, TRY(MakeServerOptions(tls.get(), console)));
    auto metrics = TRY(MakeMetrics(server, exports, files, console));
    if (!pid_file_.empty()) pid_file = TRY(PidFile::Write(pid_file_));
    NotifyReady();
    background.Ready();

    Result<> ran = server.Run(listeners, stop.fd());
    stop.Release();
    metrics.reset();
    Result<> flushed = exports.Flush();
    if (stats_) console.Out(nbd::StatsAsJson(server.counters(), exports.Open()));
    TRY(std::move(ran));
    TRY(std::move(flushed));
    return 0;
  }

  Result<> CheckOptions() {
    if (writable_ && overlay_) {
      return Fail(Code::kOutOfRange, "--writable and --overlay contradict one another");
    }
    if (names_.size() > paths_.size()) {
      return Fail(Code::kOutOfRange, "{} export names for {} images", names_.size(), paths_.size());
    }
    const bool credentials = !tls_options_.certificates.empty() || !tls_options_.psk_file.empty();
    if (tls_.empty()) tls_ = credentials ? "require" : "off";
    const bool conditions = tls_options_.verify_peer || !tls_options_.authorized.empty();
    if (tls_ != "off" && !credentials) {
      return Fail(Code::kOutOfRange, "--tls {} needs --tls-certificates or --tls-psk", tls_);
    }
    if (conditions && tls_ != "require") {
      return Fail(Code::kOutOfRange,
                  "--tls-verify-peer and --authz mean nothing to clients without TLS: they need "
                  "--tls require");
    }
    if (!tls_options_.authorized.empty() && tls_options_.psk_file.empty()) {
      tls_options_.verify_peer = true;  // who does not show a certificate has no name
    }
    return {};
  }

  Result<std::unique_ptr<nbd::TlsContext>> MakeTls() const {
    if (tls_ == "off") return nullptr;
    return nbd::TlsContext::Create(tls_options_);
  }

  Result<nbd::ServedImage> OpenImage(const std::string& path, const std::string& name,
                                     Console& console) {
    auto disk = TRY(image_.Open(path, writable_, console));
    if (overlay_) disk = TRY(StackScratch(std::move(disk)));
    DiskOptions options = TRY(image_.ToDiskOptions(false));
    // Snapshots do not change, so our own lock on the image need not stop us.
    options.file.force_share = true;
    auto open_snapshot = [this, path, options,
                          &console](const std::string& snapshot) -> Result<std::unique_ptr<Disk>> {
      DiskOptions with_snapshot = options;
      with_snapshot.snapshot = snapshot;
      auto opened = Disk::Open(path, with_snapshot, image_.MakeGate(), nullptr);
      if (opened) return opened;
      // The client is not told about our files.
      Log(console, opened.error().text());
      return Fail(opened.error().code(), "the snapshot cannot be opened");
    };
    return nbd::ServedImage{
        name.empty() ? std::filesystem::path(path).stem().string() : name,
        std::move(disk),
        writable_ || overlay_,
        rotational_,
        std::move(open_snapshot),
    };
  }

  Result<> Listen(std::vector<nbd::Listener>& listeners, SocketFiles& files, Console& console) {
    auto add = [&](nbd::Listener listener) {
      files.Add(listener);
      listeners.push_back(std::move(listener));
    };
    for (const std::string& path : sockets_) add(TRY(nbd::ListenUnix(path)));
    for (uint32_t port : vsocks_) add(TRY(nbd::ListenVsock(port)));
    std::vector<std::string> addresses = addresses_;
    if (listeners.empty() && addresses.empty()) addresses.push_back("");
    for (const std::string& address : addresses) {
      for (nbd::Listener& listener : TRY(nbd::ListenTcp(address))) add(std::move(listener));
    }
    for (const nbd::Listener& listener : listeners) {
      if (listener.loopback || tls_ == "require" || image_.quiet) continue;
      console.Warn(
          fmt::format("{} can be reached from other machines without TLS: whoever "
                      "connects can {} the disks",
                      listener.address, writable_ || overlay_ ? "read and change" : "read"));
    }
    return {};
  }

  Result<nbd::ServerOptions> MakeServerOptions(const nbd::TlsContext* tls, Console& console) {
    nbd::ServerOptions options = server_;
    nbd::ConnectionOptions& connection = options.connection;
    if (!window_.empty()) connection.window = TRY_AS("--window", ParseSize(window_));
    connection.handshake_limit = std::chrono::seconds(handshake_seconds_);
    connection.tls = tls;
    connection.session.tls = tls_ == "off"  ? nbd::TlsPolicy::kNone
                             : tls_ == "on" ? nbd::TlsPolicy::kOffered
                                            : nbd::TlsPolicy::kRequired;
    connection.log = [this, &console](const std::string& line) {
      if (!image_.quiet) Log(console, line);
    };
    connection.error_log = [this, &console](const nbd::Export& from, const nbd::Request&,
                                            const Error& error) {
      Log(console, fmt::format("export '{}': {}", Printable(from.name), error.text()));
    };
    return options;
  }

  Result<std::unique_ptr<nbd::Metrics>> MakeMetrics(const nbd::Server& server,
                                                    nbd::ImageExports& exports, SocketFiles& files,
                                                    Console& console) {
    if (metrics_.empty()) return nullptr;
    std::vector<nbd::Listener> listeners;
    for (const std::string& where : metrics_) {
      if (where.find('/') != where.npos) {
        listeners.push_back(TRY(nbd::ListenUnix(where)));
        files.Add(listeners.back());
        continue;
      }
      for (nbd::Listener& listener : TRY(nbd::ListenTcp(where))) {
        if (!listener.loopback && !image_.quiet) {
          console.Warn(fmt::format("{} can be reached from other machines", listener.address));
        }
        listeners.push_back(std::move(listener));
      }
    }
    return std::make_unique<nbd::Metrics>(
        std::move(listeners),
        [&] { return nbd::StatsAsMetrics(server.counters(), exports.Open()); },
        [&] { return nbd::StatsAsJson(server.counters(), exports.Open()); });
  }

  // Any thread.
  void Log(Console& console, const std::string& line) {
    std::scoped_lock lock(console_mutex_);
    console.Err("platter: " + line + "\n");
  }

  ImageOptions image_;
  std::vector<std::string> paths_, names_, sockets_, addresses_, metrics_;
  std::vector<uint32_t> vsocks_;
  bool writable_ = false, overlay_ = false, rotational_ = false, fork_ = false, stats_ = false;
  std::string pid_file_, window_, tls_;
  unsigned handshake_seconds_ = 10;
  nbd::ServerOptions server_;
  nbd::TlsOptions tls_options_;
  Mutex console_mutex_;  // guards the console while clients are served; a leaf
};

}  // namespace

std::unique_ptr<Command> MakeServeCommand() { return std::make_unique<ServeCommand>(); }

}  // namespace platter
