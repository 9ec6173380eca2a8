// Every format and subformat to every other one.
//
// The table below lists them; those whose format is in the registry take part. Judges are
// `qemu-img compare` and `check` where QEMU reads the result, and otherwise our own reading of it
// against the bytes that went in. The disks: empty, one sector, a few MiB with a ragged end, and
// more than 2 TiB with data here and there.
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>

#include "cow/disk.h"
#include "formats/format.h"
#include "io/engine/engine.h"
#include "tests/interop/qemu.h"
#include "tests/model/random.h"
#include "tools/command.h"

namespace platter {
namespace {

namespace fs = std::filesystem;
using testing_support::MustRun;
using testing_support::Outcome;
using testing_support::Shell;
using testing_support::TempFolder;

struct Subformat {
  std::string name;  // of the test
  std::string format;
  std::string options;           // ours, as with -o
  std::string qemu_options;      // the same for qemu-img, where it has them
  bool qemu_reads = true;        // as far as we know: otherwise only we judge
  bool qemu_checks = true;       // `qemu-img check` knows the format
  bool writable = true;          // in place
  bool qemu_reads_empty = true;  // a disk of no bytes
  bool leaks = false;            // what is dropped stays in the file, which our check calls a leak
  uint64_t largest = 3 * kTiB;   // bytes of disk
};

std::vector<Subformat> Table() {
  return {
      {.name = "raw", .format = "raw", .qemu_checks = false},
      {.name = "qcow2", .format = "qcow2"},
      {.name = "qcow2_v2",
       .format = "qcow2",
       .options = "compat=0.10",
       .qemu_options = "compat=0.10"},
      {.name = "qcow2_subclusters",
       .format = "qcow2",
       .options = "extended_l2=on",
       .qemu_options = "extended_l2=on"},
      {.name = "vdi", .format = "vdi"},
      {.name = "vdi_fixed",
       .format = "vdi",
       .options = "subformat=fixed",
       .qemu_options = "static=on",
       .largest = 64 * kMiB},
      {.name = "vdi_small_blocks",
       .format = "vdi",
       .options = "block_size=64k",
       .qemu_reads = false},
      {.name = "vhdx", .format = "vhdx"},
      {.name = "vhdx_fixed",
       .format = "vhdx",
       .options = "subformat=fixed",
       .qemu_options = "subformat=fixed",
       .largest = 64 * kMiB},
      {.name = "vpc", .format = "vpc", .qemu_checks = false, .largest = 2040 * kGiB},
      {.name = "vpc_fixed",
       .format = "vpc",
       .options = "subformat=fixed",
       .qemu_options = "subformat=fixed",
       .qemu_checks = false,
       .qemu_reads_empty = false,  // takes the footer, which is all there is, for a dynamic disk's
       .largest = 64 * kMiB},
  };
}

// QEMU does not read a sparse VMDK of no bytes, of its own making neither: to it the size 0 means
// that the descriptor's extents are somewhere else.
std::vector<Subformat> VmdkTable() {
  return {
      {.name = "vmdk_sparse",
       .format = "vmdk",
       .options = "subformat=monolithicSparse",
       .qemu_options = "subformat=monolithicSparse",
       .qemu_reads_empty = false,
       .leaks = true},
      {.name = "vmdk_flat",
       .format = "vmdk",
       .options = "subformat=monolithicFlat",
       .qemu_options = "subformat=monolithicFlat"},
      {.name = "vmdk_split_sparse",
       .format = "vmdk",
       .options = "subformat=twoGbMaxExtentSparse",
       .qemu_options = "subformat=twoGbMaxExtentSparse",
       .leaks = true},
      {.name = "vmdk_split_flat",
       .format = "vmdk",
       .options = "subformat=twoGbMaxExtentFlat",
       .qemu_options = "subformat=twoGbMaxExtentFlat"},
      {.name = "vmdk_stream",
       .format = "vmdk",
       .options = "subformat=streamOptimized",
       .qemu_options = "subformat=streamOptimized",
       .writable = false,
       .qemu_reads_empty = false},
  };
}

std::vector<Subformat> Registered() {
  std::vector<Subformat> all = Table();
  std::ranges::move(VmdkTable(), std::back_inserter(all));
  std::erase_if(all, [](const Subformat& each) { return !FindFormat(each.format); });
  return all;
}

void RaiseFileLimit() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 4096);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

std::string WithOptions(const std::string& options) {
  return options.empty() ? "" : " -o " + options;
}

class Matrix : public testing::Test {
 protected:
  std::string File(const std::string& name) const { return folder_.File(name); }

  // `platter` in process; it has to succeed.
  static void Platter(std::vector<std::string> args) {
    StringConsole console;
    std::string line;
    for (const std::string& arg : args) line += " " + arg;
    EXPECT_EQ(RunPlatter(args, console), 0) << "platter" << line << "\n" << console.err;
  }

  void Convert(const std::string& from_format, const std::string& from, const Subformat& to,
               const std::string& path) const {
    std::vector<std::string> args = {"convert",   "-q", "--force", "-f",
                                     from_format, "-O", to.format};
    if (!to.options.empty()) args.insert(args.end(), {"-o", to.options});
    args.insert(args.end(), {from, path});
    Platter(std::move(args));
  }

  // A raw file of `size` bytes: runs of random bytes and of zeros, the last byte not zero.
  std::string Raw(uint64_t size, uint64_t seed) const {
    const std::string path = File("source.raw");
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    model::Random random(seed);
    std::vector<std::byte> run;
    for (uint64_t at = 0; at < size; at += run.size()) {
      run.assign(std::min(size - at, random.Between(1, 400'000)), std::byte{0});
      if (random.OneIn(2) || at + run.size() == size) random.Fill(run);
      if (at + run.size() == size) run.back() = std::byte{1};
      file.write(reinterpret_cast<const char*>(run.data()), static_cast<long>(run.size()));
    }
    return path;
  }

  // The image reads as the raw file, by all who can tell.
  void ExpectSame(const Subformat& kind, const std::string& image, const std::string& raw) const {
    Platter({"compare", "-q", "-f", kind.format, "-F", "raw", image, raw});
    if (!kind.qemu_reads || (fs::file_size(raw) == 0 && !kind.qemu_reads_empty)) {
      return ExpectSound(kind, image, /*by_qemu=*/false);
    }
    MustRun(fmt::format("qemu-img compare -q -f {} -F raw {} {}", kind.format, image, raw));
    ExpectSound(kind, image);
  }

  void ExpectSound(const Subformat& kind, const std::string& image, bool by_qemu = true) const {
    if (kind.format != "raw") {
      StringConsole console;
      const std::vector<std::string> args = {"check", "-q", "-f", kind.format, image};
      const int code = RunPlatter(args, console);
      EXPECT_TRUE(code == 0 || (kind.leaks && code == 3)) << image << ": " << console.err;
    }
    if (by_qemu && kind.qemu_reads && kind.qemu_checks) {
      MustRun(fmt::format("qemu-img check -q -f {} {}", kind.format, image));
    }
  }

  TempFolder folder_;
};

class MatrixPair : public Matrix,
                   public testing::WithParamInterface<std::tuple<Subformat, Subformat>> {};

TEST_P(MatrixPair, ContentStays) {
  const auto& [from, to] = GetParam();
  for (uint64_t size : {uint64_t{0}, uint64_t{512}, 3 * kMiB + 1234}) {
    SCOPED_TRACE(fmt::format("{} bytes", size));
    const std::string raw = Raw(size, size + 1);
    Convert("raw", raw, from, File("from"));
    Convert(from.format, File("from"), to, File("to"));
    ExpectSame(to, File("to"), raw);
    if (HasFailure()) return;
    fs::remove(File("from"));
    fs::remove(File("to"));
  }
}

class MatrixOne : public Matrix, public testing::WithParamInterface<Subformat> {
 protected:
  Result<std::unique_ptr<Disk>> OpenForWriting(const std::string& path) const {
    DiskOptions options{.format = GetParam().format, .file = {.writable = true}};
    return Disk::Open(path, options, Gate({}), nullptr);
  }

  // Random writes and one zeroing, to the disk and to what it should hold.
  static void WriteSome(Disk& disk, std::vector<std::byte>& content, model::Random& random) {
    for (int i = 0; i < 6; ++i) {
      std::vector<std::byte> bytes(random.Between(1, 300'000));
      random.Fill(bytes);
      const uint64_t at = random.Below(content.size() - bytes.size());
      auto written = Write(disk, at, ConstBytes(bytes));
      ASSERT_TRUE(written.has_value()) << written.error().text();
      std::ranges::copy(bytes, content.begin() + static_cast<long>(at));
    }
    const Range zeros{random.Below(kMiB), 2 * kMiB};
    auto zeroed = Zero(disk, zeros, true);
    ASSERT_TRUE(zeroed.has_value()) << zeroed.error().text();
    std::fill_n(content.begin() + static_cast<long>(zeros.offset), zeros.length, std::byte{0});
    auto flushed = disk.Flush();
    ASSERT_TRUE(flushed.has_value()) << flushed.error().text();
  }

  static std::vector<std::byte> Load(const std::string& path) {
    std::vector<std::byte> bytes(fs::file_size(path));
    std::ifstream(path, std::ios::binary)
        .read(reinterpret_cast<char*>(bytes.data()), static_cast<long>(bytes.size()));
    return bytes;
  }

  static void Save(const std::string& path, const std::vector<std::byte>& bytes) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<long>(bytes.size()));
  }
};

TEST_P(MatrixOne, WhatQemuWritesReadsTheSame) {
  const Subformat& kind = GetParam();
  if (!kind.qemu_reads) return;  // what follows would be another subformat
  const std::string raw = Raw(3 * kMiB + 512 * 7, 5);
  MustRun(fmt::format("qemu-img convert -f raw -O {}{} {} {}", kind.format,
                      WithOptions(kind.qemu_options), raw, File("q")));
  ExpectSame(kind, File("q"), raw);
}

// In turns: ours, then theirs, then ours again, in the same image.
TEST_P(MatrixOne, BothWriteInPlace) {
  const Subformat& kind = GetParam();
  if (!kind.writable) return;  // it cannot be written to once it is made
  const std::string raw = Raw(3 * kMiB + 512 * 7, 6);
  Convert("raw", raw, kind, File("image"));
  std::vector<std::byte> content = Load(raw);
  model::Random random(9);
  for (int round = 0; round < 3; ++round) {
    {
      auto disk = OpenForWriting(File("image"));
      ASSERT_TRUE(disk.has_value()) << disk.error().text();
      WriteSome(**disk, content, random);
    }
    Save(raw, content);
    ExpectSame(kind, File("image"), raw);
    if (HasFailure() || !kind.qemu_reads) continue;
    const uint64_t at = random.Below(4000) * 512;
    for (const auto& [format, path] : {std::pair(kind.format, File("image")), {"raw", raw}}) {
      MustRun(fmt::format("qemu-io -f {} -c 'write -P {} {} 500k' -c 'write -z {} 64k' {}", format,
                          round + 1, at, at + 100 * kKiB, path));
    }
    ExpectSame(kind, File("image"), raw);
    content = Load(raw);
  }
}

// More than 2 TiB where the format allows it, else as much as it does; a little data in it, which
// both add to in place.
TEST_P(MatrixOne, HugeDisks) {
  RaiseFileLimit();  // splits have a file for each 2 GB
  const Subformat& kind = GetParam();
  const uint64_t size = std::min(kind.largest, 2 * kTiB + 5 * kMiB + 512);
  const std::string raw = File("source.raw");
  MustRun(fmt::format("truncate -s {} {}", size, raw));
  for (uint64_t at : {uint64_t{0}, size / 2 - 1, size - 4096}) {
    MustRun(fmt::format("qemu-io -f raw -c 'write -q -P 200 {} 4k' {}", at / 512 * 512, raw));
  }
  Convert("raw", raw, kind, File("image"));
  if (kind.writable) {
    const uint64_t at = RoundDown(size / 3 * 2, 512);
    std::vector<std::byte> bytes(100'000, std::byte{77});
    auto disk = OpenForWriting(File("image"));
    ASSERT_TRUE(disk.has_value()) << disk.error().text();
    auto written = Write(**disk, at, ConstBytes(bytes));
    ASSERT_TRUE(written.has_value()) << written.error().text();
    ASSERT_TRUE((*disk)->Flush().has_value());
    disk->reset();
    MustRun(fmt::format("qemu-io -f raw -c 'write -q -P 77 {} 100000' {}", at, raw));
  }
  if (kind.writable && kind.qemu_reads) {
    for (const auto& [format, path] : {std::pair(kind.format, File("image")), {"raw", raw}}) {
      MustRun(fmt::format("qemu-io -f {} -c 'write -q -P 78 {} 64k' {}", format,
                          RoundDown(size - kMiB, 512), path));
    }
  }
  // QEMU compares terabytes of nothing slowly in some formats: one more way back is as good.
  Convert(kind.format, File("image"), {.format = "qcow2"}, File("back.qcow2"));
  MustRun("qemu-img compare -q -f qcow2 -F raw " + File("back.qcow2") + " " + raw);
  ExpectSound(kind, File("image"));
}

std::string NameOf(const Subformat& kind) { return kind.name; }

INSTANTIATE_TEST_SUITE_P(Formats, MatrixPair,
                         testing::Combine(testing::ValuesIn(Registered()),
                                          testing::ValuesIn(Registered())),
                         [](const auto& info) {
                           return NameOf(std::get<0>(info.param)) + "_to_" +
                                  NameOf(std::get<1>(info.param));
                         });
INSTANTIATE_TEST_SUITE_P(Formats, MatrixOne, testing::ValuesIn(Registered()),
                         [](const auto& info) { return NameOf(info.param); });

}  // namespace
}  // namespace platter
