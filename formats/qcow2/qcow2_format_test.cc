// The descriptor: what callers that know only formats/format.h get.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "formats/qcow2/qcow2.h"
#include "formats/qcow2/qcow2_disk.h"
#include "formats/qcow2/qcow2_testing.h"
#include "io/memory_store.h"

namespace platter::qcow2 {
namespace {

int Probe(std::string_view head) { return kQcow2Format.probe(AsBytes(head), {}, head.size()); }

TEST(Qcow2Format, Probe) {
  using namespace std::string_view_literals;
  EXPECT_EQ(Probe("QFI\xfb\0\0\0\x03"sv), 100);
  EXPECT_EQ(Probe("QFI\xfb\0\0\0\x02"sv), 100);
  EXPECT_EQ(Probe("QFI\xfb\0\0\0\x09"sv), 100);  // refused by name at open
  EXPECT_EQ(Probe("QFI\xfb\0\0\0\x01"sv), 0);    // qcow, another format
  EXPECT_EQ(Probe("QFI\xfb\0\0\0"sv), 0);
  EXPECT_EQ(Probe("QFI\xfa\0\0\0\x03"sv), 0);
  EXPECT_EQ(Probe(""sv), 0);
}

TEST(Qcow2Format, OptionsAreListedInOrder) {
  for (size_t i = 1; i < kQcow2Format.create_options.size(); ++i) {
    EXPECT_LT(kQcow2Format.create_options[i - 1].name, kQcow2Format.create_options[i].name);
  }
}

// Any number of layers may look at one store; MemoryStore::Clone makes the copies.
TEST(Qcow2Format, CreateCheckOpen) {
  std::mt19937_64 random(4);
  auto one_of = [&](std::initializer_list<const char*> choices) {
    return std::string(choices.begin()[random() % choices.size()]);
  };
  int created = 0;
  for (int round = 0; round < 400; ++round) {
    CreateOptions create;
    create.size = random() % 3 == 0 ? random() % 4096 : random() % (20 * kMiB);
    create.options = {{"cluster_size", one_of({"512", "1k", "4k", "16k", "64k", "2M"})},
                      {"compat", one_of({"v2", "v3", "v3", "v3"})},
                      {"refcount_bits", one_of({"1", "2", "4", "8", "16", "16", "32", "64"})},
                      {"extended_l2", one_of({"on", "off"})},
                      {"lazy_refcounts", one_of({"on", "off"})},
                      {"compression_type", one_of({"zlib", "zstd"})},
                      {"preallocation", one_of({"off", "metadata", "falloc", "full"})}};
    std::string what;
    for (const auto& [name, value] : create.options) what += name + "=" + value + " ";
    MemoryStore store;
    if (auto result = kQcow2Format.create(store, create); !result.has_value()) {
      ASSERT_EQ(result.error().code(), Code::kUnsupported) << what << result.error().text();
      continue;
    }
    ++created;
    auto report = kQcow2Format.check(store, {}, {});
    ASSERT_TRUE(report.has_value()) << what << report.error().text();
    ASSERT_EQ(report->errors + report->corruptions + report->leaks, 0u)
        << what << report->findings.front().text;
    ASSERT_LE(report->image_end, store.Size().value()) << what;
    auto layer = kQcow2Format.open(store.Clone(), {});
    ASSERT_TRUE(layer.has_value()) << what << layer.error().text();
    ASSERT_EQ((*layer)->info().size, RoundUp(create.size, 512)) << what;
    ASSERT_EQ((*layer)->info().format, "qcow2");
  }
  EXPECT_GT(created, 100);
}

// Damaged in any one place, an image opens or is refused, and check says something; nothing else.
TEST(Qcow2Format, AnyByteOfTheTablesMayBeWrong) {
  CreateOptions create;
  create.size = 64 * kKiB;
  create.options = {{"cluster_size", "512"}, {"preallocation", "metadata"}};
  MemoryStore good;
  ASSERT_TRUE(kQcow2Format.create(good, create).has_value());
  std::vector<Extent> extents(64);
  uint64_t refused = 0;
  for (uint64_t at = 0; at < 12 * 512; ++at) {
    auto store = good.Clone();
    std::byte value{0};
    ASSERT_TRUE(store->Read(at, Bytes(&value, 1)).has_value());
    value ^= static_cast<std::byte>(1u << at % 8);
    ASSERT_TRUE(store->Write(at, ConstBytes(&value, 1)).has_value());
    (void)kQcow2Format.check(*store, {}, {}).has_value();
    auto layer = kQcow2Format.open(std::move(store), {});
    if (!layer.has_value()) {
      EXPECT_FALSE(layer.error().text().empty());
      ++refused;
      continue;
    }
    uint64_t size = (*layer)->info().size;
    for (uint64_t guest = 0; guest < std::min<uint64_t>(size, kMiB);) {
      auto count = (*layer)->Map(Range{guest, std::min<uint64_t>(size, kMiB) - guest}, extents);
      if (!count.has_value()) break;
      ASSERT_GT(*count, 0u);
      ASSERT_EQ(extents[0].guest.offset, guest);
      guest = extents[*count - 1].guest.end();
    }
  }
  EXPECT_GT(refused, 50u);
}

}  // namespace
}  // namespace platter::qcow2
