// platter measure: how large the file of a new image will be.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>

#include "base/size.h"
#include "formats/options.h"
#include "tools/command.h"
#include "tools/image_options.h"
#include "tools/map_entries.h"

namespace platter {
namespace {

// Where a disk has data, in a bounded number of ranges: an image of some KiB can have billions.
// What would be more is rounded to larger units, which leaves an upper bound.
class DataRanges {
 public:
  explicit DataRanges(uint64_t disk_size) : disk_size_(disk_size) {}

  void Add(Range range) {
    if (ranges_.size() == kMost) {
      while (ranges_.size() > kMost / 2) Coarsen();
    }
    AddLast(range);
  }
  std::span<const Range> ranges() const { return ranges_; }
  uint64_t bytes() const {
    uint64_t sum = 0;
    for (Range range : ranges_) sum += range.length;
    return sum;
  }

 private:
  static constexpr size_t kMost = 1 << 20;

  void AddLast(Range range) {
    range = range.Outward(unit_).Intersect({0, disk_size_});
    if (!ranges_.empty() && range.offset <= ranges_.back().end()) {
      ranges_.back() = Range::FromTo(ranges_.back().offset, range.end());
    } else {
      ranges_.push_back(range);
    }
  }
  void Coarsen() {
    unit_ *= 2;
    std::vector<Range> finer;
    finer.swap(ranges_);
    for (Range range : finer) AddLast(range);
  }

  const uint64_t disk_size_;
  uint64_t unit_ = 1;
  std::vector<Range> ranges_;
};

class MeasureCommand : public Command {
 public:
  std::string_view name() const override { return "measure"; }
  std::string_view summary() const override { return "Calculate the file size of a new image"; }
  std::string_view examples() const override {
    return "  platter measure -O qcow2 disk.raw\n"
           "  platter measure -O qcow2 -o cluster_size=1M --size 4T\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    app.add_option("-O,--target-format", target_format_, "Format of the new image; default raw")
        ->type_name("FMT");
    app.add_option("-o,--options", lists_, "Options of the new image")
        ->type_name("NAME=VALUE")
        ->allow_extra_args(false);
    app.add_option("--size", size_text_, "Of an empty disk, instead of FILE")->type_name("SIZE");
    app.add_option("-l,--snapshot", image_.snapshot, "Of an internal snapshot of FILE")
        ->type_name("SNAP");
    app.add_option("--output", output_, "human or json")->check(CLI::IsMember({"human", "json"}));
    app.add_option("FILE", path_);
  }

  int Run(Console& console) override {
    Result<MeasureResult> sizes = Measure(console);
    if (!sizes) {
      console.Report(sizes.error());
      return 1;
    }
    if (output_ == "json") {
      nlohmann::ordered_json json = {{"required", sizes->required},
                                     {"fully-allocated", sizes->fully_allocated}};
      if (sizes->bitmaps) json["bitmaps"] = *sizes->bitmaps;
      console.Print("{}\n", json.dump(4));
      return 0;
    }
    console.Print("required size: {}\nfully allocated size: {}\n", sizes->required,
                  sizes->fully_allocated);
    if (sizes->bitmaps) console.Print("bitmaps size: {}\n", *sizes->bitmaps);
    return 0;
  }

 private:
  Result<MeasureResult> Measure(Console& console) {
    if (path_.empty() == size_text_.empty())
      return Fail(Code::kOutOfRange, "measure needs either FILE or --size");
    const Format* format = TRY(FindFormat(target_format_));
    CreateOptions create;
    create.options = TRY(ParseOptionList(lists_));
    TRY(TakeCommonOptions(create));
    if (path_.empty()) {
      create.size = TRY(ParseSize(size_text_));
      return format->measure(create, 0, {});
    }
    auto disk = TRY(image_.Open(path_, false, console));
    create.size = disk->info().size;
    DataRanges data(create.size);
    TRY(ForEachMapEntry(*disk, {0, create.size}, [&](const MapEntry& entry) {
      if (entry.data) data.Add(entry.range);
    }));
    MeasureResult sizes = TRY(format->measure(create, data.bytes(), data.ranges()));
    if (!sizes.bitmaps) sizes.bitmaps = TRY(BitmapBytes(disk->info(), create));
    return sizes;
  }

  // What convert --bitmaps adds to a qcow2 image, if all bits are stored: clusters of bits, tables
  // and the directory. Nothing where the source has no such thing as bitmaps.
  Result<std::optional<uint64_t>> BitmapBytes(const Info& source, const CreateOptions& create) {
    auto compat = [](const Fact& fact) {
      auto* text = std::get_if<std::string>(&fact.value);
      return fact.name == "compat" && text && *text != "0.10";
    };
    if (target_format_ != "qcow2" || source.format != "qcow2" ||
        std::ranges::none_of(source.facts, compat)) {
      return std::nullopt;
    }
    const uint64_t unit = TRY(SizeOption(create.options, "cluster_size")).value_or(65536);
    uint64_t bytes = 0, directory = 0;
    for (const BitmapInfo& bitmap : source.bitmaps) {
      if (bitmap.in_use) continue;
      const uint64_t clusters =
          DivideUp(DivideUp(DivideUp(source.size, bitmap.granularity), 8), unit);
      bytes += clusters * unit + RoundUp(clusters * 8, unit);
      directory += RoundUp(24 + bitmap.name.size(), 8);
    }
    return bytes + RoundUp(directory, unit);
  }

  ImageOptions image_;
  std::vector<std::string> lists_;
  std::string path_, target_format_ = "raw", size_text_, output_ = "human";
};

}  // namespace

std::unique_ptr<Command> MakeMeasureCommand() { return std::make_unique<MeasureCommand>(); }

}  // namespace platter
