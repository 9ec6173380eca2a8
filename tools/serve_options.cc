#include "tools/serve_options.h"

#include <CLI/CLI.hpp>

namespace platter {

void ServeOptions::Declare(CLI::App& app) {
  image.Declare(app);
  DeclareExports(app);
  DeclareSockets(app);
  DeclareTls(app);
  app.add_option("--max-connections", server.most_connections,
                 "Clients at a time; default 128. A further one is let go at once")
      ->type_name("NUMBER")
      ->check(CLI::Range(1, 100000));
  app.add_option("--window", window,
                 "Bytes of requests and replies that a client may have in flight; default 16M")
      ->type_name("SIZE");
  app.add_option("--handshake-limit", handshake_seconds,
                 "Seconds that a client has to choose an export; default 10")
      ->type_name("SECONDS")
      ->check(CLI::Range(1, 3600));
  app.add_option("--workers", server.workers, "Threads for requests that have to wait; default 16")
      ->type_name("NUMBER")
      ->check(CLI::Range(1, 1024));
  app.add_flag("--stats", stats, "At the end, print what was done as JSON");
  app.add_option("--metrics", metrics,
                 "Answer HTTP on a socket (a path, or HOST:PORT): /metrics for Prometheus, "
                 "/stats as JSON")
      ->type_name("WHERE")
      ->allow_extra_args(false);
  app.add_flag("-q,--quiet", image.quiet, "Print errors only");
  app.add_option("IMAGE", paths, "Images; the first is the default export too")->required();
}

void ServeOptions::DeclareExports(CLI::App& app) {
  app.add_flag("-w,--writable", writable, "Let clients write, and resize the disk");
  app.add_flag("--overlay", overlay,
               "Let clients write, into a temporary file (in TMPDIR): the images stay as they "
               "are");
  app.add_option("-x,--export-name", names,
                 "Name of the export; once for each image, in their order. Without it, the "
                 "file's name without its ending")
      ->type_name("NAME")
      ->allow_extra_args(false);
  app.add_flag("--rotational", rotational, "Tell clients that seeking is slow");
}

void ServeOptions::DeclareSockets(CLI::App& app) {
  auto several = [&](const char* flags, std::vector<std::string>& into, const char* help,
                     const char* type) {
    app.add_option(flags, into, help)->type_name(type)->allow_extra_args(false);
  };
  several("-k,--socket", sockets, "Listen on a unix socket", "PATH");
  several("--listen", addresses,
          "Listen on HOST:PORT; no HOST is this machine only, * everywhere; default port 10809",
          "HOST:PORT");
  app.add_option("--vsock", vsocks, "Listen for this machine's own guests")
      ->type_name("PORT")
      ->allow_extra_args(false);
  app.add_flag("--exit-after-last", server.exit_after_last, "End when the last client leaves");
  app.add_option("--pid-file", pid_file, "Write the process id there once clients can connect")
      ->type_name("FILE");
  app.add_flag("--fork", fork, "Go on in the background once clients can connect");
}

void ServeOptions::DeclareTls(CLI::App& app) {
  app.add_option("--tls", tls_mode,
                 "require (default with --tls-certificates or --tls-psk), on (clients may do "
                 "without), off")
      ->type_name("MODE")
      ->check(CLI::IsMember({"require", "on", "off"}));
  app.add_option("--tls-certificates", tls_options.certificates,
                 "Directory with server-cert.pem, server-key.pem, and ca-cert.pem")
      ->type_name("DIR");
  app.add_option("--tls-psk", tls_options.psk_file, "Pre-shared keys: lines of user:hexadecimal")
      ->type_name("FILE");
  app.add_flag("--tls-verify-peer", tls_options.verify_peer,
               "Clients have to show a certificate of the authority in ca-cert.pem");
  app.add_option("--authz", tls_options.authorized,
                 "Let in only this distinguished name (or user of a pre-shared key)")
      ->type_name("NAME")
      ->allow_extra_args(false);
}

Result<> ServeOptions::Complete() {
  if (writable && overlay) {
    return Fail(Code::kOutOfRange, "--writable and --overlay contradict one another");
  }
  if (names.size() > paths.size()) {
    return Fail(Code::kOutOfRange, "{} export names for {} images", names.size(), paths.size());
  }
  const bool credentials = !tls_options.certificates.empty() || !tls_options.psk_file.empty();
  if (tls_mode.empty()) tls_mode = credentials ? "require" : "off";
  const bool conditions = tls_options.verify_peer || !tls_options.authorized.empty();
  if (tls_mode != "off" && !credentials) {
    return Fail(Code::kOutOfRange, "--tls {} needs --tls-certificates or --tls-psk", tls_mode);
  }
  if (conditions && tls_mode != "require") {
    return Fail(Code::kOutOfRange,
                "--tls-verify-peer and --authz mean nothing to clients without TLS: they need "
                "--tls require");
  }
  if (!tls_options.authorized.empty() && tls_options.psk_file.empty()) {
    tls_options.verify_peer = true;  // who does not show a certificate has no name
  }
  return {};
}

}  // namespace platter
