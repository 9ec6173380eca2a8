#include "formats/qcow2/qcow2_dirty.h"

#include <gtest/gtest.h>

#include "tests/model/random.h"

namespace platter::qcow2 {
namespace {

TEST(DirtyPages, BitsAgreeWithAModel) {
  model::Random random(1);
  std::vector<std::byte> bits(64);
  std::vector<bool> model(512);
  for (int i = 0; i < 500; ++i) {
    const uint64_t first = random.Below(512), number = random.Below(513 - first);
    if (random.OneIn(20)) {
      ClearBits(bits, first);
      std::fill(model.begin() + static_cast<ptrdiff_t>(first), model.end(), false);
    } else {
      SetBits(bits, first, number / 8);
      std::fill_n(model.begin() + static_cast<ptrdiff_t>(first), number / 8, true);
    }
    std::vector<bool> seen(512);
    uint64_t last = 0;
    VisitBits(bits, 512, [&](uint64_t at, uint64_t count) {
      EXPECT_TRUE(at == 0 || at > last);
      last = at + count;
      std::fill_n(seen.begin() + static_cast<ptrdiff_t>(at), count, true);
      return true;
    });
    ASSERT_EQ(seen, model);
  }
}

TEST(DirtyPages, CoversWhatWasSet) {
  DirtyPages pages(9, 64);  // a page is 512 bits of 512 bytes: 256 KiB
  EXPECT_EQ(pages.span(), 256 * kKiB);
  EXPECT_EQ(pages.Missing({256 * kKiB - 1, 2}), 0u);
  pages.Load(0, std::vector<std::byte>(64));
  EXPECT_EQ(pages.Missing({256 * kKiB - 1, 2}), 1u);
  pages.LoadFull(1);
  EXPECT_FALSE(pages.Missing({256 * kKiB - 1, 2}));
  EXPECT_FALSE(pages.Covers({256 * kKiB - 1, 2}));
  pages.Set({256 * kKiB - 1, 2});
  EXPECT_TRUE(pages.Covers({256 * kKiB - 512, 1024}));
  EXPECT_FALSE(pages.Covers({256 * kKiB - 513, 2}));
  EXPECT_TRUE(pages.Find(0)->changed);
  pages.MarkStored();
  pages.Set({256 * kKiB - 10, 10});
  EXPECT_FALSE(pages.Find(0)->changed) << "nothing new";
}

}  // namespace
}  // namespace platter::qcow2
