// platter serve: images as NBD exports.
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
#include "tools/serve_options.h"

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

  void Declare(CLI::App& app) override { options_.Declare(app); }

  int Run(Console& console) override {
    Result<int> done = Serve(console);
    if (done) return *done;
    console.Report(done.error());
    return 1;
  }

 private:
  // The exit code.
  Result<int> Serve(Console& console) {
    TRY(options_.Complete());
    std::vector<nbd::Listener> listeners = TRY(nbd::TakeActivated());
    Background background;
    if (options_.fork) {
      int exit_code = -1;
      background = TRY(Background::Fork(exit_code));
      if (exit_code >= 0) return exit_code;
    }
    StopSignals stop;
    PidFile pid_file;  // gone last, when everything is closed
    auto tls = TRY(MakeTls());
    nbd::ImageExports exports;
    for (size_t i = 0; i < options_.paths.size(); ++i) {
      TRY(exports.Add(TRY(OpenImage(options_.paths[i],
                                    i < options_.names.size() ? options_.names[i] : "", console))));
    }
    SocketFiles files;
    TRY(Listen(listeners, files, console));

    nbd::Server server(exports, TRY(MakeServerOptions(tls.get(), console)));
    auto metrics = TRY(MakeMetrics(server, exports, files, console));
    if (!options_.pid_file.empty()) pid_file = TRY(PidFile::Write(options_.pid_file));
    NotifyReady();
    background.Ready();

    Result<> ran = server.Run(listeners, stop.fd());
    metrics.reset();
    // A second signal does not get in between: what was acknowledged would be lost.
    Result<> flushed = exports.Flush();
    if (options_.stats) console.Out(nbd::StatsAsJson(server.counters(), exports.Open()));
    TRY(std::move(ran));
    TRY(std::move(flushed));
    return 0;
  }

  Result<std::unique_ptr<nbd::TlsContext>> MakeTls() const {
    if (options_.tls_mode == "off") return nullptr;
    return nbd::TlsContext::Create(options_.tls_options);
  }

  Result<nbd::ServedImage> OpenImage(const std::string& path, const std::string& name,
                                     Console& console) {
    auto disk = TRY(options_.image.Open(path, options_.writable, console));
    if (options_.overlay) disk = TRY(StackScratch(std::move(disk)));
    DiskOptions options = TRY(options_.image.ToDiskOptions(false));
    // Snapshots do not change, so our own lock on the image need not stop us.
    options.file.force_share = true;
    auto open_snapshot = [this, path, options,
                          &console](const std::string& snapshot) -> Result<std::unique_ptr<Disk>> {
      DiskOptions with_snapshot = options;
      with_snapshot.snapshot = snapshot;
      auto opened = Disk::Open(path, with_snapshot, options_.image.MakeGate(), nullptr);
      if (opened) return opened;
      // The client is not told about our files.
      Log(console, opened.error().text());
      return Fail(opened.error().code(), "the snapshot cannot be opened");
    };
    return nbd::ServedImage{
        name.empty() ? std::filesystem::path(path).stem().string() : name,
        std::move(disk),
        options_.writable || options_.overlay,
        options_.rotational,
        std::move(open_snapshot),
    };
  }

  Result<> Listen(std::vector<nbd::Listener>& listeners, SocketFiles& files, Console& console) {
    auto add = [&](nbd::Listener listener) {
      files.Add(listener);
      listeners.push_back(std::move(listener));
    };
    for (const std::string& path : options_.sockets) add(TRY(nbd::ListenUnix(path)));
    for (uint32_t port : options_.vsocks) add(TRY(nbd::ListenVsock(port)));
    std::vector<std::string> addresses = options_.addresses;
    if (listeners.empty() && addresses.empty()) addresses.push_back("");
    for (const std::string& address : addresses) {
      for (nbd::Listener& listener : TRY(nbd::ListenTcp(address))) add(std::move(listener));
    }
    for (const nbd::Listener& listener : listeners) {
      if (listener.loopback || options_.tls_mode == "require" || options_.image.quiet) continue;
      console.Warn(fmt::format(
          "{} can be reached from other machines without TLS: whoever "
          "connects can {} the disks",
          listener.address, options_.writable || options_.overlay ? "read and change" : "read"));
    }
    return {};
  }

  Result<nbd::ServerOptions> MakeServerOptions(const nbd::TlsContext* tls, Console& console) {
    nbd::ServerOptions options = options_.server;
    nbd::ConnectionOptions& connection = options.connection;
    if (!options_.window.empty())
      connection.window = TRY_AS("--window", ParseSize(options_.window));
    connection.handshake_limit = std::chrono::seconds(options_.handshake_seconds);
    connection.tls = tls;
    connection.session.tls = options_.tls_mode == "off"  ? nbd::TlsPolicy::kNone
                             : options_.tls_mode == "on" ? nbd::TlsPolicy::kOffered
                                                         : nbd::TlsPolicy::kRequired;
    connection.log = [this, &console](const std::string& line) {
      if (!options_.image.quiet) Log(console, line);
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
    if (options_.metrics.empty()) return nullptr;
    std::vector<nbd::Listener> listeners;
    for (const std::string& where : options_.metrics) {
      if (where.find('/') != where.npos) {
        listeners.push_back(TRY(nbd::ListenUnix(where)));
        files.Add(listeners.back());
        continue;
      }
      for (nbd::Listener& listener : TRY(nbd::ListenTcp(where))) {
        if (!listener.loopback && !options_.image.quiet) {
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

  ServeOptions options_;
  Mutex console_mutex_;  // guards the console while clients are served; a leaf
};

}  // namespace

std::unique_ptr<Command> MakeServeCommand() { return std::make_unique<ServeCommand>(); }

}  // namespace platter
