// platter map: what each run of guest bytes is, and where its bytes are.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <array>

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
           "offsets under the mouse\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    image_.DeclareParent(app);
    app.add_option("--output", output_, "human or json")->check(CLI::IsMember({"human", "json"}));
    app.add_option("--picture", picture_, "Draw the allocation into FILE.png or FILE.html")
        ->type_name("FILE");
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
  std::string path_, picture_, output_ = "human", start_text_, length_text_;
};

}  // namespace

std::unique_ptr<Command> MakeMapCommand() { return std::make_unique<MapCommand>(); }

}  // namespace platter
