// Measured sizes are those of qemu-img measure.
#include <fmt/format.h>

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "formats/qcow2/qcow2_create.h"
#include "formats/qcow2/qcow2_testing.h"

namespace platter::qcow2 {
namespace {

uint64_t NumberAfter(const std::string& text, const std::string& key) {
  size_t at = text.find("\"" + key + "\": ");
  return at == std::string::npos ? ~uint64_t{0}
                                 : std::strtoull(text.c_str() + at + key.size() + 4, nullptr, 10);
}

class Qcow2Measure : public QemuTest {
 protected:
  void ExpectEqual(const std::string& qemu_command, const std::string& options, uint64_t size,
                   const std::vector<Range>& data) {
    Outcome qemu = Shell(qemu_command);
    ASSERT_EQ(qemu.exit_code, 0) << qemu_command << "\n" << qemu.output;
    CreateOptions create;
    create.size = size;
    create.options = OptionsOf(options);
    uint64_t allocated = 0;
    for (const Range& range : data) allocated += range.length;
    auto measured = MeasureQcow2(create, allocated, data);
    ASSERT_TRUE(measured.has_value()) << measured.error().text();
    EXPECT_EQ(measured->required, NumberAfter(qemu.output, "required"))
        << qemu_command << " " << options;
    EXPECT_EQ(measured->fully_allocated, NumberAfter(qemu.output, "fully-allocated"))
        << qemu_command;
  }
  void ExpectEqual(const std::string& options, uint64_t size) {
    ExpectEqual(fmt::format("qemu-img measure -O qcow2 --output json --size {}{}{}", size,
                            options.empty() ? "" : " -o ", options),
                options, size, {});
  }
};

TEST_F(Qcow2Measure, EveryGeometry) {
  for (const char* form : {"", ",compat=0.10", ",extended_l2=on", ",preallocation=metadata",
                           ",preallocation=falloc", ",preallocation=full"}) {
    for (uint32_t bits = 9; bits <= 21; bits += 2) {
      if (std::string_view(form) == ",extended_l2=on" && bits < 14) continue;
      for (uint64_t size : {uint64_t{0}, uint64_t{1}, kMiB + 1, 100 * kGiB}) {
        ExpectEqual(fmt::format("cluster_size={}{}", 1u << bits, form), size);
      }
    }
  }
}

TEST_F(Qcow2Measure, RefcountWidthsAndHugeDisks) {
  for (uint32_t order = 0; order <= 6; ++order) {
    for (uint64_t size : {7 * kGiB + 512, 64 * kTiB, 1000 * kTiB}) {
      ExpectEqual(fmt::format("refcount_bits={}", 1u << order), size);
    }
  }
}

TEST_F(Qcow2Measure, Encryption) {
  for (const char* options : {"", ",encrypt.cipher-alg=aes-128", ",cluster_size=4k"}) {
    std::string all = std::string("encrypt.format=luks") + options;
    ExpectEqual(
        "qemu-img measure -O qcow2 --output json --object secret,id=s,data=corpus "
        "--size 1G -o encrypt.key-secret=s," +
            all,
        all, kGiB, {});
  }
}

// The data of a sparse raw file, cluster by cluster and page by page.
TEST_F(Qcow2Measure, AllocatedData) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 6; ++round) {
    uint64_t size = (4 + random() % 60) * kMiB;
    auto file = NewFile("raw");
    ASSERT_TRUE(file->Resize(size).has_value());
    std::vector<std::byte> page(4096, std::byte{1});
    for (int i = 0; i < 40; ++i) {
      ASSERT_TRUE(file->Write(RoundDown(random() % size, 4096), ConstBytes(page)).has_value());
    }
    std::vector<Range> data;
    for (uint64_t at = 0; at < size;) {
      auto run = file->FindRun(at);
      ASSERT_TRUE(run.has_value());
      if (run->data) data.push_back(Range{at, run->length});
      at += run->length;
    }
    for (const char* options : {"cluster_size=512", "cluster_size=64k", "cluster_size=2M"}) {
      ExpectEqual(fmt::format("qemu-img measure -f raw -O qcow2 --output json -o {} {}", options,
                              Path("raw")),
                  options, size, data);
    }
  }
}

TEST_F(Qcow2Measure, RefusesWhatCreateRefuses) {
  CreateOptions create;
  create.size = 129 * kGiB;
  create.options = OptionsOf("cluster_size=512");
  auto measured = MeasureQcow2(create, 0, {});
  ASSERT_FALSE(measured.has_value());
  EXPECT_EQ(measured.error().code(), Code::kOutOfRange);
}

}  // namespace
}  // namespace platter::qcow2
