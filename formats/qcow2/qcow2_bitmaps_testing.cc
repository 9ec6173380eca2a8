#include "formats/qcow2/qcow2_bitmaps_testing.h"

#include "formats/qcow2/qcow2_disk.h"
#include "formats/qcow2/qcow2_layer.h"

namespace platter::qcow2 {

std::ostream& operator<<(std::ostream& out, const Seen& seen) {
  out << (seen.in_use ? "in use, " : "") << (seen.enabled ? "enabled, " : "") << seen.granularity
      << " bytes each, " << seen.entries << " entries, " << seen.set.size() << " bits set";
  for (size_t i = 0; i < seen.set.size() && i < 20; ++i) out << ' ' << seen.set[i];
  return out;
}

Result<SeenBitmaps> LookAtBitmaps(Store& file) {
  std::vector<std::byte> head(std::min<uint64_t>(TRY(file.Size()), kMaxHeaderBytes));
  TRY(file.Read(0, Bytes(head)));
  Header header = TRY(ParseHeader(head));
  SeenBitmaps all;
  if (!header.bitmaps) return all;
  std::vector<std::byte> directory(header.bitmaps->directory_size);
  TRY(file.Read(header.bitmaps->directory_offset, Bytes(directory)));
  const std::vector<Bitmap> bitmaps = TRY(ParseBitmaps(header, directory));
  for (const Bitmap& bitmap : bitmaps) {
    Seen& seen = all[bitmap.info.name];
    seen = {
        bitmap.info.in_use, bitmap.info.enabled, bitmap.info.granularity, bitmap.table_size, {}};
    std::vector<std::byte> table(bitmap.table_size * 8), bits(header.cluster_size());
    TRY(file.Read(bitmap.table_offset, Bytes(table)));
    for (uint64_t i = 0; i < bitmap.table_size; ++i) {
      uint64_t entry = *LoadAt<be64>(table, i * 8);
      if (entry == 0) continue;
      std::ranges::fill(bits, std::byte{0xff});
      if (!(entry & kBitmapAllOnes)) TRY(file.Read(entry & kOffsetMask, Bytes(bits)));
      for (uint64_t bit = 0; bit < bits.size() * 8; ++bit) {
        if ((bits[bit / 8] >> bit % 8 & std::byte{1}) != std::byte{0}) {
          seen.set.push_back(i * bits.size() * 8 + bit);
        }
      }
    }
    // What "all ones" says past the end is nothing.
    std::erase_if(seen.set,
                  [&](uint64_t bit) { return bit * bitmap.info.granularity >= header.size; });
  }
  return all;
}

Result<std::vector<Range>> DirtyOf(Layer& layer, const std::string& name) {
  std::vector<Range> dirty;
  TRY(layer.bitmapper()->VisitDirty(name, {0, layer.info().size}, [&](Range range) {
    dirty.push_back(range);
    return true;
  }));
  return dirty;
}

void BitmapTest::Run(const std::string& command) {
  Outcome outcome = Shell("cd " + Path("") + " && " + command);
  ASSERT_EQ(outcome.exit_code, 0) << command << ": " << outcome.output;
}

SeenBitmaps BitmapTest::Look(const std::string& name) {
  auto file = FileStore::Open(Path(name), {.lock = false});  // a writer may have it open
  EXPECT_TRUE(file.has_value()) << file.error().text();
  auto seen = LookAtBitmaps(**file);
  EXPECT_TRUE(seen.has_value()) << seen.error().text();
  return seen ? *seen : SeenBitmaps();
}

std::unique_ptr<Layer> BitmapTest::OpenLayer(const std::string& name, bool writable) {
  auto layer = OpenQcow2(OpenFile(name), {.writable = writable});
  EXPECT_TRUE(layer) << layer.error().text();
  return layer ? std::move(*layer) : nullptr;
}

std::unique_ptr<MemoryStore> BitmapTest::Load(const std::string& name) {
  auto file = OpenFile(name);
  std::vector<std::byte> bytes(file->Size().value());
  EXPECT_TRUE(file->Store::Read(0, Bytes(bytes)));
  return std::make_unique<MemoryStore>(ConstBytes(bytes));
}

}  // namespace platter::qcow2
