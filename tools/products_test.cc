// --for: the table, and the command line that uses it.
#include "tools/products.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "formats/format.h"
#include "tests/interop/qemu.h"
#include "tools/command.h"

namespace platter {
namespace {

using testing::HasSubstr;
using testing_support::MustRun;

TEST(Products, FillInWhatIsMissing) {
  ImageWish wish{.product = "azure"};
  auto text = ChooseFor(wish, false);
  ASSERT_TRUE(text) << text.error().text();
  EXPECT_EQ(wish.format, "vpc");
  EXPECT_EQ(wish.options.at("subformat"), "fixed");
  EXPECT_EQ(wish.options.at("force_size"), "on");
  EXPECT_EQ(wish.multiple, 1048576u);
  EXPECT_THAT(*text, HasSubstr("for azure: vpc with subformat=fixed,force_size=on"));
}

TEST(Products, DifferForAnEmptyImage) {
  ImageWish wish{.product = "esxi"}, create{.product = "esxi"};
  ASSERT_TRUE(ChooseFor(wish, false));
  ASSERT_TRUE(ChooseFor(create, true));
  EXPECT_EQ(wish.options.at("subformat"), "streamOptimized");
  EXPECT_EQ(create.options.at("subformat"), "monolithicFlat");
}

TEST(Products, AgreeWithWhatTheUserSays) {
  ImageWish same{.product = "azure", .format = "vhd", .options = {{"subformat", "fixed"}}};
  EXPECT_TRUE(ChooseFor(same, false));
  ImageWish more{.product = "proxmox", .options = {{"cluster_size", "2M"}}};
  ASSERT_TRUE(ChooseFor(more, false));
  EXPECT_EQ(more.options.at("cluster_size"), "2M");
  ImageWish format{.product = "azure", .format = "qcow2"};
  auto refused = ChooseFor(format, false);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kRefused);
  ImageWish option{.product = "azure", .options = {{"subformat", "dynamic"}}};
  refused = ChooseFor(option, false);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().text(), HasSubstr("-o subformat=dynamic was given"));
  ImageWish unknown{.product = "bochs"};
  refused = ChooseFor(unknown, false);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().text(), HasSubstr("openstack"));
  ImageWish none{.format = "qcow2"};
  EXPECT_EQ(*ChooseFor(none, false), "");
  EXPECT_EQ(none.format, "qcow2");
}

struct Ran {
  int code;
  std::string out, err;
};

Ran Platter(std::vector<std::string> args) {
  StringConsole console;
  int code = RunPlatter(args, console);
  return {code, console.out, console.err};
}

TEST(ForProduct, ConvertMakesWhatAzureTakes) {
  testing_support::TempFolder folder;
  const std::string raw = folder.File("disk.raw"), vhd = folder.File("disk.vhd");
  MustRun("truncate -s 5000000 " + raw + " && qemu-io -f raw -c 'write -P 3 1M 1M' " + raw);
  Ran ran = Platter({"convert", "-f", "raw", "--for", "azure", "--verify", raw, vhd});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(ran.err, HasSubstr("for azure: vpc"));
  EXPECT_EQ(MustRun("stat -c %s " + vhd), "5243392\n") << "5 MiB and a footer";
  MustRun("qemu-img compare -f raw -F vpc " + raw + " " + vhd);
  ran = Platter({"convert", "-f", "raw", "-O", "qcow2", "--for", "azure", "--force", raw, vhd});
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.err, HasSubstr("--for azure means vpc"));
  ran = Platter({"convert", "-f", "raw", "-n", "--for", "azure", raw, vhd});
  EXPECT_EQ(ran.code, 1);
}

TEST(ForProduct, CreateRoundsTheSize) {
  testing_support::TempFolder folder;
  const std::string vhd = folder.File("disk.vhd");
  Ran ran = Platter({"create", "--for", "azure", vhd, "5000k"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(MustRun("stat -c %s " + vhd), "5243392\n");
  ran = Platter({"create", "-q", "--for", "openstack", folder.File("disk.qcow2"), "1G"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.err, "");
  MustRun("qemu-img check -q " + folder.File("disk.qcow2"));
}

TEST(ForProduct, FormatsOfTheTableAreOurs) {
  for (const Product& product : AllProducts()) {
    if (product.format == "vdi" || product.format == "vhdx" || product.format == "vmdk") continue;
    EXPECT_TRUE(FindFormat(product.format)) << product.name;
  }
}

}  // namespace
}  // namespace platter
