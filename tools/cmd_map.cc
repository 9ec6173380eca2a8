// platter map: what each run of guest bytes is, and where its bytes are.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <array>

#include "io/bitmapper.h"
#include "tools/command.h"
#include "tools/image_options.h"
#include "tools/map_entries.h"
#include "tools/map_picture.h"

namespace platter {
namespace {

class MapCommand : public Command {
 public:
  std::string_view name() const override { return "map"; }
  std::string_view summary() const override {
    return "Show where an image's content is, or draw it";
  }
  std::string_view examples() const override {
    return "  platter map overlay.qcow2\n"
           "  platter map --output json overlay.qcow2\n"
           "  platter map --picture disk.png disk.qcow2\n"
           "  platter map --picture disk.html disk.qcow2    with a legend, and "
           "offsets under the mouse\n"
           "  platter map --bitmap monday disk.qcow2        what is dirty in a bitmap\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    image_.DeclareParent(app);
    app.add_option("--output", output_, "human or json")->check(CLI::IsMember({"human", "json"}));
    app.add_option("--picture", picture_, "Draw the allocation into FILE.png or FILE.html")
        ->type_name("FILE");
    app.add_option("--bitmap", bitmap_, "Show what is dirty in this bitmap of the image instead")
        ->type_name("NAME");
    app.add_option("-s,--start-offset", start_text_, "First byte")->type_name("SIZE");
    app.add_option("-l,--max-length", length_text_, "Bytes at most")->type_name("SIZE");
    app.add_option("FILE", path_)->required();
  }

  int Run(Console& console) override {
    Result<> shown = Show(console);
    if (shown) return 0;
    console.Report(shown.error());
    return 1;
  }

 private:
  Result<> Show(Console& console) {
    auto disk = TRY(image_.Open(path_, false, console));
    Range range = TRY(ParseMapRange(start_text_, length_text_, disk->info().size));
    if (!bitmap_.empty()) return ShowBitmap(*disk, range, console);
    if (!picture_.empty()) return DrawMap(*disk, range, path_, picture_);
    if (output_ == "json") {
      bool first = true;
      console.Out("[");
      TRY(ForEachMapEntry(*disk, range, [&](const MapEntry& entry) {
        console.Print("{}{}", first ? "" : ",\n", ToJson(entry).dump());
        first = false;
      }));
      console.Out("]\n");
      return {};
    }
    console.Print("{:<16}{:<16}{:<16}{}\n", "Offset", "Length", "Mapped to", "File");
    return ForEachMapEntry(*disk, range, [&](const MapEntry& entry) {
      if (!entry.data) return;
      console.Print("{:<#16x}{:<#16x}{:<16}{}\n", entry.range.offset, entry.range.length,
                    entry.host         ? fmt::format("{:#x}", *entry.host)
                    : entry.compressed ? "compressed"
                                       : "encrypted",
                    entry.file);
    });
  }

  // JSON covers all of `range`, the text is of what is dirty alone.
  Result<> ShowBitmap(Disk& disk, Range range, Console& console) {
    Bitmapper* bitmaps = disk.bitmapper();
    if (!picture_.empty()) return Fail(Code::kUnsupported, "--picture of a bitmap");
    if (!bitmaps) {
      return Fail(Code::kUnsupported, "'{}': {} images hold no bitmaps", Printable(path_, 4096),
                  disk.info().format);
    }
    const bool json = output_ == "json";
    bool first = true;
    auto put = [&](Range part, bool dirty) {
      if (part.empty()) return;
      if (json) {
        nlohmann::ordered_json entry = {
            {"start", part.offset}, {"length", part.length}, {"dirty", dirty}};
        console.Print("{}{}", first ? "" : ",\n", entry.dump());
        first = false;
      } else if (dirty) {
        console.Print("{:<#16x}{:<#16x}\n", part.offset, part.length);
      }
    };
    uint64_t at = range.offset;
    console.Out(json ? "[" : fmt::format("{:<16}{:<16}\n", "Offset", "Length"));
    TRY(bitmaps->VisitDirty(bitmap_, range, [&](Range dirty) {
      put(Range::FromTo(at, dirty.offset), false);
      put(dirty, true);
      at = dirty.end();
      return true;
    }));
    put(Range::FromTo(at, range.end()), false);
    if (json) console.Out("]\n");
    return {};
  }

  static nlohmann::ordered_json ToJson(const MapEntry& entry) {
    nlohmann::ordered_json json = {
        {"start", entry.range.offset},    {"length", entry.range.length}, {"depth", entry.depth},
        {"present", entry.present},       {"zero", entry.zero},           {"data", entry.data},
        {"compressed", entry.compressed},
    };
    if (entry.host) json["offset"] = *entry.host;
    return json;
  }

  ImageOptions image_;
  std::string path_, picture_, bitmap_, output_ = "human", start_text_, length_text_;
};

}  // namespace

std::unique_ptr<Command> MakeMapCommand() { return std::make_unique<MapCommand>(); }

}  // namespace platter
