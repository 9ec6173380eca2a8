#include "formats/qcow2/qcow2_subjects_testing.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <utility>

#include "base/check.h"
#include "formats/qcow2/qcow2_check.h"
#include "formats/qcow2/qcow2_create.h"
#include "formats/qcow2/qcow2_layer.h"
#include "formats/qcow2/qcow2_testing.h"
#include "formats/testing/named_stores.h"
#include "io/testing/wrapper_store.h"

namespace platter::qcow2 {

namespace {

const Secret& Passphrase() {
  static const Secret secret(AsBytes(std::string_view("geheim")));
  return secret;
}

// The one further file that an image of these tests can have, under the name it is given.
NamedStores DataFile(const Configuration& configuration, Store* data) {
  NamedStores files;
  auto name = configuration.options.find("data_file");
  if (data && name != configuration.options.end()) files.Lend(name->second, *data);
  return files;
}

}  // namespace

Result<> CreateImage(const Configuration& configuration, Store& store, Store* data) {
  if (!configuration.image.empty()) {
    TRY(store.Write(0, ConstBytes(configuration.image)));
    return store.Sync();
  }
  CreateOptions options;
  options.size = configuration.size;
  options.options = configuration.options;
  options.options["cluster_size"] = fmt::format("{}", configuration.cluster);
  if (configuration.parent) options.parent = Reference{Reference::kParent, "parent.raw", "raw"};
  if (configuration.encrypted) options.secret = &Passphrase();
  NamedStores files = DataFile(configuration, data);
  options.files = &files;
  return CreateQcow2(store, options);
}

Result<std::unique_ptr<Layer>> OpenImage(const Configuration& configuration, Store& store,
                                         Store* data, bool writable, const std::string& snapshot) {
  NamedStores opener = DataFile(configuration, data);
  OpenOptions options;
  options.writable = writable;
  options.opener = &opener;
  options.snapshot = snapshot;
  if (configuration.encrypted) options.secret = &Passphrase();
  return OpenQcow2(std::make_unique<WrapperStore>(store), options);
}

Result<bool> IsSound(Store& store) {
  CheckReport report = TRY(CheckQcow2(store, OpenOptions{}, CheckOptions{}));
  for (const CheckReport::Finding& finding : report.findings) {
    if (finding.kind != CheckReport::Finding::kLeak) {
      return Fail(Code::kCorrupt, "{}", finding.text);
    }
  }
  return report.corruptions == 0 && report.errors == 0;
}

std::vector<Configuration> Configurations() {
  using Options = std::map<std::string, std::string>;
  return {
      {"version 3, 64 KiB clusters", 40 * 65536, 65536, Options{}},
      {"version 2, 4 KiB clusters", 60 * 4096 + 512, 4096, Options{{"compat", "0.10"}}},
      {"version 2 with parent", 60 * 4096, 4096, Options{{"compat", "0.10"}}, true},
      {"512 byte clusters", 700 * 512, 512, Options{}},
      {"512 byte clusters, 64 bit refcounts", 900 * 512, 512, Options{{"refcount_bits", "64"}}},
      {"1 bit refcounts", 60 * 4096, 4096, Options{{"refcount_bits", "1"}}},
      {"zstd, 2 bit refcounts, parent", 60 * 4096, 4096,
       Options{{"refcount_bits", "2"}, {"compression_type", "zstd"}}, true},
      {"subclusters", 40 * 16384 + 1536, 16384, Options{{"extended_l2", "on"}}},
      {"subclusters with parent", 40 * 16384, 16384, Options{{"extended_l2", "on"}}, true},
      {"data file", 60 * 4096, 4096, Options{{"data_file", "data"}}},
      {"data file with parent", 60 * 4096, 4096, Options{{"data_file", "data"}}, true},
      {"data file with subclusters", 40 * 16384, 16384,
       Options{{"data_file", "data"}, {"extended_l2", "on"}}},
      {"raw data file", 60 * 4096, 4096, Options{{"data_file", "data"}, {"data_file_raw", "on"}}},
      {"legacy AES", 60 * 4096, 4096, Options{{"encrypt.format", "aes"}}, false, true},
      {"LUKS with subclusters", 40 * 16384, 16384,
       Options{{"encrypt.format", "luks"}, {"encrypt.iter-time", "10"}, {"extended_l2", "on"}},
       false, true},
      {"preallocated", 60 * 4096, 4096, Options{{"preallocation", "metadata"}}},
  };
}

namespace {

std::vector<std::byte> Slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  ConstBytes bytes = AsBytes(std::string_view(text));
  return {bytes.begin(), bytes.end()};
}

Configuration WithSnapshot(std::string name, uint64_t cluster, const std::string& options) {
  Configuration made;
  made.name = std::move(name);
  made.cluster = cluster;
  made.size = 60 * cluster;
  const char* base = std::getenv("TEST_TMPDIR");
  std::string dir = fmt::format("{}/snapshot{}", base != nullptr ? base : "/tmp", getpid());
  std::filesystem::create_directories(dir);
  std::string image = dir + "/image";
  std::string write = "qemu-io -f qcow2 -c 'write -P {} {} {}' " + image + " >/dev/null; ";
  Outcome outcome =
      Shell(fmt::format("set -e; qemu-img create -q -f qcow2 -o cluster_size={},{} {} {}; ",
                        cluster, options, image, made.size) +
            fmt::format(fmt::runtime(write), 17, 3 * cluster + 512, 20 * cluster) +
            fmt::format("qemu-img snapshot -c s {}; ", image) +
            fmt::format(fmt::runtime(write), 34, 10 * cluster, 2 * cluster) +
            fmt::format("qemu-img convert -O raw {0} {1}/raw; "
                        "qemu-img convert -l s -O raw {0} {1}/before",
                        image, dir));
  if (outcome.exit_code != 0) fmt::print(stderr, "{}\n", outcome.output);
  CHECK(outcome.exit_code == 0);
  made.image = Slurp(image);
  made.initial = Slurp(dir + "/raw");
  made.snapshot = Slurp(dir + "/before");
  std::filesystem::remove_all(dir);
  return made;
}

}  // namespace

std::vector<Configuration> SnapshotConfigurations() {
  return {
      WithSnapshot("snapshot, 4 KiB clusters", 4096, "compat=1.1"),
      WithSnapshot("snapshot, 512 byte clusters", 512, "refcount_bits=8"),
      WithSnapshot("snapshot, subclusters", 16384, "extended_l2=on"),
  };
}

model::Subject SubjectOf(const Configuration& configuration) {
  auto data = std::make_shared<std::unique_ptr<MemoryStore>>();
  model::Subject subject;
  subject.name = configuration.name;
  subject.size = configuration.size;
  subject.unit = configuration.cluster;
  subject.initial = configuration.initial;
  subject.create = [=](Store& store) {
    *data = configuration.has_data_file() ? std::make_unique<MemoryStore>() : nullptr;
    return CreateImage(configuration, store, data->get());
  };
  subject.open = [=](Store& store) { return OpenImage(configuration, store, data->get()); };
  subject.check = IsSound;
  return subject;
}

}  // namespace platter::qcow2
