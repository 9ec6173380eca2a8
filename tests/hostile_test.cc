// Malformed images: whatever is in them, platter ends by itself within seconds and 256 MiB, with
// exit code 0 to 3, and refuses what can only be refused.
//
// The collection (hostile.tsv beside hostile-open.tar.xz) is given by PLATTER_SAMPLES. Without it
// one test passes and says what was not run.
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/endian.h"
#include "base/math.h"
#include "formats/format.h"
#include "tests/interop/qemu.h"
#include "tests/table.h"

namespace platter {
namespace {

namespace fs = std::filesystem;

constexpr double kMostSeconds = 5;
constexpr long kMostKiB = 256 * 1024;

struct Row {
  std::string id, format, path, expected, digest;
};

std::vector<Row> ReadList(const fs::path& file) {
  std::vector<Row> rows;
  for (const auto& cells : testing_support::ReadTable(file, 8)) {
    // Where a row names several files the first is opened.
    std::string path = cells[4].substr(0, cells[4].find(' '));
    rows.push_back({cells[0], cells[1], path, cells[5], cells[6]});
  }
  return rows;
}

struct Ended {
  int status = 0;
  double seconds = 0;
  long peak_kib = 0;
  std::string output;
};

Ended RunPlatter(const std::vector<std::string>& args, const std::string& output_file) {
  auto start = std::chrono::steady_clock::now();
  pid_t child = fork();
  if (child == 0) {
    alarm(30);  // far over the limit: a hang is a failure, not a stuck test
    if (!freopen(output_file.c_str(), "w", stdout)) _exit(126);
    dup2(STDOUT_FILENO, STDERR_FILENO);
    std::vector<char*> argv;
    std::string program = "tools/platter";
    argv.push_back(program.data());
    for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
    argv.push_back(nullptr);
    execv(program.c_str(), argv.data());
    _exit(127);
  }
  Ended ended;
  rusage usage{};
  wait4(child, &ended.status, 0, &usage);
  ended.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  ended.peak_kib = usage.ru_maxrss;
  std::ifstream in(output_file);
  ended.output.assign(std::istreambuf_iterator<char>(in), {});
  return ended;
}

class HostileTest : public testing::Test {
 public:
  HostileTest(fs::path root, Row row) : root_(std::move(root)), row_(std::move(row)) {}

  void TestBody() override {
    std::string path = root_ / row_.path;
    bool ours = row_.format != "raw" && FindFormat(row_.format).has_value();
    std::vector<std::string> format;
    if (ours) format = {"-f", row_.format};
    Survives({"info"}, format, path);
    Survives({"check", "--deep"}, format, path);
    Ended read = Survives({"hash", "-q"}, format, path);
    if (ours && row_.expected.starts_with("error at open")) {
      EXPECT_NE(read.status, 0) << read.output;
    }
    if (ours && row_.digest.size() == 64) {
      Ended plain = Survives({"hash", "-q", "--plain"}, format, path);
      EXPECT_EQ(plain.output.substr(0, 71), "sha256:" + row_.digest);
    }
  }

 private:
  Ended Survives(std::vector<std::string> command, const std::vector<std::string>& format,
                 const std::string& path) {
    command.insert(command.end(), format.begin(), format.end());
    command.push_back(path);
    Ended ended = RunPlatter(command, folder_.File("output"));
    EXPECT_TRUE(WIFEXITED(ended.status))
        << command[0] << ": signal " << WTERMSIG(ended.status) << "\n"
        << ended.output;
    EXPECT_TRUE(WEXITSTATUS(ended.status) <= 3 || WEXITSTATUS(ended.status) == 63) << ended.output;
#if !defined(PLATTER_ASAN) && !defined(PLATTER_TSAN)
    EXPECT_LT(ended.seconds, kMostSeconds) << command[0];
    EXPECT_LT(ended.peak_kib, kMostKiB) << command[0];
#endif
    if (ended.status != 0 && command[0] != "check") {
      EXPECT_EQ(std::count(ended.output.begin(), ended.output.end(), '\n'), 1) << "not one line:\n"
                                                                               << ended.output;
    }
    return ended;
  }

  const fs::path root_;
  const Row row_;
  testing_support::TempFolder folder_;
};

TEST(Hostile, IsGivenOrSaidToBeMissing) {
  const char* folder = std::getenv("PLATTER_SAMPLES");
  if (!folder || !*folder) {
    std::puts("not run: malformed images; give their folder with ./dev test --samples DIR");
    return;
  }
  EXPECT_TRUE(fs::exists(fs::path(folder) / "hostile.tsv")) << folder;
}

// An L1 table whose entries all name one L2 table, of which every second entry names the one
// cluster that there is: millions of ranges of data in a file of 400 KiB.
void MakeManyRanges(const std::string& path, uint64_t tables) {
  const uint64_t span = 512 * kMiB;  // of an L2 table
  testing_support::MustRun("qemu-img create -q -f qcow2 " + path + " " +
                           std::to_string(tables * span) + " && qemu-io -c 'write -q 0 64k' " +
                           path);
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  auto entry = [&](uint64_t at) {
    be64 value;
    file.seekg(static_cast<long>(at)).read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  };
  auto repeat = [&](uint64_t table, be64 value, uint64_t count, uint64_t stride) {
    for (uint64_t i = 0; i < count; i += stride) {
      file.seekp(static_cast<long>(table + i * sizeof value));
      file.write(reinterpret_cast<const char*>(&value), sizeof value);
    }
  };
  constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;
  const uint64_t l1 = entry(40);  // of the header: l1_table_offset
  const be64 first = entry(l1);
  const uint64_t l2 = first & kOffsetMask;
  repeat(l1, first, tables, 1);
  repeat(l2, entry(l2), 8192, 2);
  ASSERT_TRUE(file.good());
}

TEST(Hostile, MeasureTakesBoundedMemory) {
#if defined(PLATTER_ASAN) || defined(PLATTER_TSAN)
  const uint64_t tables = 64;
#else
  const uint64_t tables = 4200;  // 17 million ranges
#endif
  testing_support::TempFolder folder;
  MakeManyRanges(folder.File("shared.qcow2"), tables);
  for (const char* format : {"qcow2", "vhdx"}) {
    const Ended ended =
        RunPlatter({"measure", "-O", format, folder.File("shared.qcow2")}, folder.File("output"));
    EXPECT_EQ(ended.status, 0) << format << ": " << ended.output;
    EXPECT_LT(ended.peak_kib, kMostKiB) << format;
  }
}

}  // namespace
}  // namespace platter

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* folder = std::getenv("PLATTER_SAMPLES");
  platter::testing_support::TempFolder unpacked;
  if (folder && *folder) {
    std::string archive = (std::filesystem::path(folder) / "hostile-open.tar.xz").string();
    if (std::system(("tar -xSJf '" + archive + "' -C '" + unpacked.File("") + "'").c_str()) != 0) {
      std::puts("cannot unpack the collection; install with: apt-get install xz-utils");
      return 1;
    }
    for (const platter::Row& row :
         platter::ReadList(std::filesystem::path(folder) / "hostile.tsv")) {
      std::string name = row.id;
      std::replace(name.begin(), name.end(), '-', '_');
      testing::RegisterTest("Hostile", name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                            [&unpacked, row]() -> testing::Test* {
                              return new platter::HostileTest(unpacked.File(""), row);
                            });
    }
  }
  return RUN_ALL_TESTS();
}
