// Real images by foreign tools, against the SHA-256 of their content that independent readers
// found.
//
// The folder (a manifest.tsv beside files/) is given by PLATTER_SAMPLES (`./dev test --samples
// DIR`). Without it one test passes and says what was not run.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "base/endian.h"
#include "cow/disk.h"
#include "formats/format.h"
#include "io/buffer.h"
#include "io/codec/hash.h"
#include "io/engine/engine.h"
#include "tests/interop/qemu.h"
#include "tests/table.h"

namespace platter {
namespace {

namespace fs = std::filesystem;

struct Row {
  std::string id, format, path, size, digest, expected, note;
};

std::vector<Row> ReadManifest(const fs::path& file) {
  std::vector<Row> rows;
  for (const auto& cells : testing_support::ReadTable(file, 11)) {
    rows.push_back({cells[0], cells[1], cells[4], cells[5], cells[6], cells[8], cells[10]});
  }
  return rows;
}

// A private copy of a sample's folder with everything unzipped, so that parents are found beside.
class SampleFolder {
 public:
  explicit SampleFolder(const fs::path& source) {
    fs::copy(source, path_, fs::copy_options::recursive);
    for (const auto& entry : fs::directory_iterator(path_))
      fs::permissions(entry, fs::perms::owner_all);
    [[maybe_unused]] int status =
        std::system(("gunzip -q '" + path_.string() + "'/*.gz 2>/dev/null").c_str());
  }
  const fs::path& path() const { return path_; }

 private:
  testing_support::TempFolder folder_;
  fs::path path_ = folder_.File("");
};

// The manifest's two kinds of digest: of all bytes, or ("sparse:") of each 64 KiB block that is not
// all zeros, its offset as 8 bytes big endian before it.
Result<std::string> Digest(Layer& disk, bool sparse) {
  constexpr uint64_t kBlock = 64 * kKiB;
  Sha256 hash;
  Buffer buffer(kBlock);
  uint64_t size = disk.info().size;
  for (uint64_t at = 0; at < size;) {
    if (sparse) {  // step over mapped zeros
      Extent extent;
      TRY(disk.Map(Range::FromTo(at, size), std::span(&extent, 1)));
      Range zeros = extent.guest.Inward(kBlock);
      if (extent.kind != Kind::kData && !zeros.empty() && zeros.offset == at) {
        at = zeros.end();
        continue;
      }
    }
    Bytes block = buffer.bytes().first(std::min(kBlock, size - at));
    TRY(Read(disk, at, block));
    if (!sparse) hash.Update(block);
    if (sparse && !IsZero(block)) {
      hash.Update(AsBytes(be64(at)));
      hash.Update(block);
    }
    at += block.size();
  }
  return (sparse ? "sparse:" : "") + Hex(hash.Finish());
}

class SampleTest : public testing::Test {
 public:
  SampleTest(fs::path root, Row row) : root_(std::move(root)), row_(std::move(row)) {}

  void TestBody() override {
    fs::path source = root_ / row_.path;
    SampleFolder folder(source.parent_path());
    std::string name = source.filename().string();
    if (name.ends_with(".gz")) name.resize(name.size() - 3);
    std::string path = folder.path() / name;

    bool supported = FindFormat(row_.format).has_value();
    Secret passphrase(AsBytes(std::string_view("corpus")));
    DiskOptions options;
    if (supported) options.format = row_.format;
    if (row_.note.find("passphrase") != std::string::npos) options.secret = &passphrase;
    std::vector<std::string> warnings;
    auto disk = Disk::Open(path, options, Gate({}), &warnings);
    if (!supported) {
      ASSERT_FALSE(disk) << row_.format << " was taken for " << (*disk)->info().format;
      // By name ("is VMDK, which is not supported yet", "is compressed with xz"), and how to go on.
      EXPECT_NE(disk.error().text().find(" is "), std::string::npos) << disk.error().text();
      EXPECT_NE(disk.error().text().find("give -f raw"), std::string::npos) << disk.error().text();
      return;
    }
    if (row_.expected == "error") {  // its parent is not public
      EXPECT_FALSE(disk);
      return;
    }
    ASSERT_TRUE(disk) << disk.error().text();
    EXPECT_EQ(std::to_string((*disk)->info().size), row_.size);
    auto digest = Digest(**disk, row_.digest.starts_with("sparse:"));
    ASSERT_TRUE(digest) << digest.error().text();
    EXPECT_EQ(*digest, row_.digest);
    if (source.extension() == ".gz" && (*disk)->info().references.empty())
      ReadWrapped(source, options);
  }

 private:
  // The same, as it is kept.
  void ReadWrapped(const fs::path& source, DiskOptions options) {
    options.inside = true;
    options.unpack = {.given = true};
    auto disk = Disk::Open(source, options, Gate({}), nullptr);
    ASSERT_TRUE(disk) << disk.error().text();
    auto digest = Digest(**disk, row_.digest.starts_with("sparse:"));
    ASSERT_TRUE(digest) << digest.error().text();
    EXPECT_EQ(*digest, row_.digest);
  }

  const fs::path root_;
  const Row row_;
};

TEST(Samples, AreGivenOrSaidToBeMissing) {
  const char* folder = std::getenv("PLATTER_SAMPLES");
  if (!folder || !*folder) {
    std::puts("not run: images by foreign tools; give their folder with ./dev test --samples DIR");
    return;
  }
  EXPECT_TRUE(fs::exists(fs::path(folder) / "manifest.tsv")) << folder;
}

}  // namespace
}  // namespace platter

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* folder = std::getenv("PLATTER_SAMPLES");
  if (folder && *folder) {
    for (const platter::Row& row :
         platter::ReadManifest(std::filesystem::path(folder) / "manifest.tsv")) {
      std::string name = row.id;
      std::replace(name.begin(), name.end(), '-', '_');
      testing::RegisterTest(
          "Sample", name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
          [folder, row]() -> testing::Test* { return new platter::SampleTest(folder, row); });
    }
  }
  return RUN_ALL_TESTS();
}
