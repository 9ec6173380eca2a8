// Random option sets of qcow2, judged by QEMU's tools in both directions.
//
// Each seed draws a version, cluster size, refcount width, extended L2, compression, data file,
// backing chain and encryption. Ours: we create and write, qemu-img checks and compares with the
// model. Theirs: qemu-img and qemu-io create and write, we read the same bytes.
// PLATTER_SEEDS=FIRST:COUNT runs others than the default.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <random>
#include <set>

#include "cow/create.h"
#include "cow/disk.h"
#include "io/engine/engine.h"
#include "tests/interop/qemu.h"

namespace platter {
namespace {

using testing_support::MustRun;
using testing_support::TempFolder;

using Random = std::mt19937_64;
uint64_t Pick(Random& random, uint64_t bound) { return random() % bound; }

struct OptionSet {
  std::map<std::string, std::string> options;
  bool v2 = false, encrypted = false, compressed_writes = false, lazy = false;
  uint64_t cluster = 65536, size = 0;
  uint64_t parent_size = 0;  // 0: no parent
  std::string parent_format;

  std::string Joined() const {
    std::string text;
    for (const auto& [name, value] : options)
      text += (text.empty() ? "" : ",") + name + "=" + value;
    return text;
  }
};

OptionSet Draw(Random& random, const std::string& data_file) {
  OptionSet set;
  auto flip = [&](unsigned one_in) { return Pick(random, one_in) == 0; };
  set.v2 = flip(5);
  set.options["compat"] = set.v2 ? "0.10" : "1.1";
  set.cluster = uint64_t{512} << Pick(random, 13);
  if (!set.v2) {
    set.options["refcount_bits"] = std::to_string(1 << Pick(random, 7));
    if (flip(3)) {
      set.options["extended_l2"] = "on";
      set.cluster = uint64_t{16384} << Pick(random, 8);
    }
    if (flip(4)) set.options["lazy_refcounts"] = "on";
    if (flip(2)) set.options["compression_type"] = "zstd";
  }
  set.options["cluster_size"] = std::to_string(set.cluster);
  bool own_data_file = !set.v2 && flip(6);
  bool raw_data_file = own_data_file && flip(2);
  if (own_data_file) {
    set.options["data_file"] = data_file;
    if (raw_data_file) set.options["data_file_raw"] = "on";
  }
  // A raw data file under encryption starts as zeros that decrypt to noise: no content to agree on.
  if (!raw_data_file && flip(5)) {
    set.encrypted = true;
    set.options["encrypt.format"] = flip(3) ? "aes" : "luks";
    if (set.options["encrypt.format"] == "luks") set.options["encrypt.iter-time"] = "10";
  }
  if (!raw_data_file && flip(3)) {
    set.parent_format = flip(2) ? "raw" : "qcow2";
    set.parent_size = 512 * (1 + Pick(random, 8192));
  }
  set.compressed_writes = !own_data_file && !set.encrypted;
  set.size = 512 * (1 + Pick(random, 16384));
  if (set.cluster == 512 && flip(2)) set.size = 512 * (1 + Pick(random, 512));
  return set;
}

std::vector<std::byte> Noise(Random& random, uint64_t length) {
  std::vector<std::byte> bytes(length);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random() >> 56);
  return bytes;
}

void WriteWhole(const std::string& path, const std::vector<std::byte>& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

Range DrawRange(Random& random, uint64_t size, uint64_t cluster) {
  uint64_t offset = Pick(random, size);
  uint64_t most = std::min(size - offset, Pick(random, 4) == 0 ? 8 * cluster + 1 : uint64_t{70000});
  return {offset, 1 + Pick(random, most)};
}

class OptionsTest : public testing::TestWithParam<unsigned> {
 protected:
  OptionsTest() : random_(GetParam()), set_(Draw(random_, folder_.File("disk.data"))) {
    SCOPED_TRACE(set_.Joined());
    if (set_.parent_size > 0) MakeParent();
    model_.resize(set_.size);
    std::copy_n(parent_.begin(), std::min(parent_.size(), model_.size()), model_.begin());
  }

  void MakeParent() {
    parent_ = Noise(random_, set_.parent_size);
    WriteWhole(folder_.File("parent.raw"), parent_);
    if (set_.parent_format == "qcow2") {
      MustRun("qemu-img convert -q -f raw -O qcow2 " + folder_.File("parent.raw") + " " +
              folder_.File("parent.qcow2"));
    }
  }

  // qemu-io commands, and their effect on the model. Compressed ones come first: QEMU compresses
  // whole clusters only, into what is not allocated yet, and after it frees a compressed cluster
  // it goes on packing in the freed host cluster (`qemu-img check` then finds it shared).
  std::string CompressedWrites() {
    std::string commands;
    std::set<uint64_t> seen;
    bool allowed = set_.compressed_writes && set_.options["refcount_bits"] != "1";
    for (int i = 0; allowed && i < 6; ++i) {
      uint64_t offset = RoundDown(Pick(random_, set_.size), set_.cluster);
      if (offset + set_.cluster > set_.size || !seen.insert(offset).second) continue;
      commands += IoCommand("write -c -P", {offset, set_.cluster}, 1 + Pick(random_, 255));
    }
    return commands;
  }
  std::string PlainWrites() {
    std::string commands;
    for (int i = 0; i < 20; ++i) {
      Range range =
          DrawRange(random_, set_.size, set_.cluster).Outward(512).Intersect({0, set_.size});
      commands += Pick(random_, 5) == 0 ? IoCommand("write -z", range, 0)
                                        : IoCommand("write -P", range, 1 + Pick(random_, 255));
    }
    return commands;
  }
  std::string IoCommand(const std::string& verb, Range range, uint64_t pattern) {
    auto target = std::span(model_).subspan(range.offset, range.length);
    std::fill(target.begin(), target.end(), static_cast<std::byte>(pattern));
    std::string value = verb.ends_with("-P") ? fmt::format(" {}", pattern) : "";
    return fmt::format(" -c '{}{} {} {}'", verb, value, range.offset, range.length);
  }

  std::string image() const { return folder_.File("disk.qcow2"); }
  std::string parent_name() const { return "parent." + set_.parent_format; }

  // As --image-opts for QEMU's tools, with the passphrase where one is needed.
  std::string ImageOptions() const {
    return std::string("driver=qcow2,file.driver=file,file.filename=") + image() +
           (set_.encrypted ? ",encrypt.key-secret=key" : "");
  }
  std::string Object() const {
    return set_.encrypted ? " --object secret,id=key,data=abc123 " : " ";
  }

  void QemuComparesWithModel() {
    WriteWhole(folder_.File("model.raw"), model_);
    MustRun("qemu-img check -q" + Object() + "--image-opts " + ImageOptions());
    MustRun("qemu-img compare" + Object() +
            "--image-opts driver=raw,file.driver=file,file.filename=" + folder_.File("model.raw") +
            " " + ImageOptions());
  }

  void WeReadTheModel() {
    DiskOptions options;
    options.format = "qcow2";
    options.secret = set_.encrypted ? &passphrase_ : nullptr;
    std::vector<std::string> warnings;
    auto disk = Disk::Open(image(), options, Gate({}), &warnings);
    ASSERT_TRUE(disk) << disk.error().text();
    ASSERT_EQ((*disk)->info().size, model_.size());
    std::vector<std::byte> content(model_.size());
    auto read = Read(**disk, 0, Bytes(content));
    ASSERT_TRUE(read) << read.error().text();
    auto different = std::mismatch(content.begin(), content.end(), model_.begin());
    EXPECT_TRUE(different.first == content.end())
        << "first difference at " << different.first - content.begin();
  }

  TempFolder folder_;
  Random random_;
  OptionSet set_;
  Secret passphrase_{AsBytes(std::string_view("abc123"))};
  std::vector<std::byte> parent_, model_;
};

TEST_P(OptionsTest, OursIsReadByQemu) {
  SCOPED_TRACE(set_.Joined());
  NewImageOptions create;
  create.format = "qcow2";
  create.create.size = set_.size;
  create.create.options = set_.options;
  create.create.secret = set_.encrypted ? &passphrase_ : nullptr;
  if (set_.parent_size > 0)
    create.create.parent = Reference{Reference::kParent, parent_name(), set_.parent_format};
  std::vector<std::string> warnings;
  auto made = NewImage::Create(image(), create, Gate({}), &warnings);
  ASSERT_TRUE(made) << made.error().text();
  Disk& disk = (*made)->disk();
  for (int i = 0; i < 40; ++i) {
    Range range = DrawRange(random_, set_.size, set_.cluster);
    auto target = std::span(model_).subspan(range.offset, range.length);
    Result<> done;
    switch (Pick(random_, 6)) {
      case 0:
        done = Zero(disk, range, Pick(random_, 2) == 0);
        std::fill(target.begin(), target.end(), std::byte{0});
        break;
      case 1: {
        std::vector<std::byte> seen(range.length);
        done = Read(disk, range.offset, Bytes(seen));
        EXPECT_TRUE(std::equal(seen.begin(), seen.end(), target.begin()))
            << range.offset << "+" << range.length;
        break;
      }
      case 2: done = disk.Flush(); break;
      default: {
        auto bytes = Noise(random_, range.length);
        done = Write(disk, range.offset, ConstBytes(bytes));
        std::copy(bytes.begin(), bytes.end(), target.begin());
      }
    }
    ASSERT_TRUE(done) << done.error().text();
  }
  auto committed = (*made)->Commit();
  ASSERT_TRUE(committed) << committed.error().text();
  WeReadTheModel();
  QemuComparesWithModel();
}

TEST_P(OptionsTest, TheirsIsReadByUs) {
  SCOPED_TRACE(set_.Joined());
  std::string options = set_.Joined();
  if (set_.encrypted) options += ",encrypt.key-secret=key";
  std::string backing =
      set_.parent_size > 0 ? " -b " + parent_name() + " -F " + set_.parent_format : "";
  MustRun("cd " + folder_.File("") + " && qemu-img create -q -f qcow2" + Object() + "-o " +
          options + backing + " " + image() + " " + std::to_string(set_.size));
  std::string commands = CompressedWrites();
  commands += PlainWrites();
  std::string output = MustRun("qemu-io" + Object() + commands + " --image-opts " + ImageOptions());
  ASSERT_EQ(output.find("failed"), std::string::npos) << output;
  WeReadTheModel();
}

std::pair<unsigned, unsigned> Seeds() {
  unsigned first = 1, count = 220;
#if defined(PLATTER_ASAN) || defined(PLATTER_TSAN)
  count = 30;
#endif
  if (const char* given = std::getenv("PLATTER_SEEDS")) std::sscanf(given, "%u:%u", &first, &count);
  return {first, first + count};
}

INSTANTIATE_TEST_SUITE_P(Seed, OptionsTest, testing::Range(Seeds().first, Seeds().second));

}  // namespace
}  // namespace platter
