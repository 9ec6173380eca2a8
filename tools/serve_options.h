// What `platter serve` can be told.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nbd/server.h"
#include "nbd/tls.h"
#include "tools/image_options.h"

namespace platter {

struct ServeOptions {
  void Declare(CLI::App& app);
  // Fills in what follows from other options. kOutOfRange for what contradicts itself.
  Result<> Complete();

  ImageOptions image;
  std::vector<std::string> paths, names;
  bool writable = false, overlay = false, rotational = false;

  std::vector<std::string> sockets, addresses, metrics;
  std::vector<uint32_t> vsocks;
  std::string pid_file;
  bool fork = false, stats = false;

  std::string tls_mode;  // "require", "on", "off"
  nbd::TlsOptions tls_options;

  std::string window;
  unsigned handshake_seconds = 10;
  nbd::ServerOptions server;  // what stands in no option of its own above is set already

 private:
  void DeclareExports(CLI::App& app);
  void DeclareSockets(CLI::App& app);
  void DeclareTls(CLI::App& app);
};

}  // namespace platter
