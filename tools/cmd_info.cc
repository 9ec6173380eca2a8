// platter info: what an image says of itself, and every file it names, without
// opening those.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

#include "cow/unwrap.h"
#include "tools/command.h"
#include "tools/image_options.h"
#include "tools/json_facts.h"

namespace platter {
namespace {

// Bytes that the file at `path` takes on its filesystem; 0 where it has none of
// its own.
uint64_t ActualSize(const std::string& path) {
  struct stat status{};
  return stat(SplitMember(path).path.c_str(), &status) == 0
             ? static_cast<uint64_t>(status.st_blocks) * 512
             : 0;
}

class InfoCommand : public Command {
 public:
  std::string_view name() const override { return "info"; }
  std::string_view summary() const override { return "Show what an image says of itself"; }
  std::string_view examples() const override {
    return "  platter info disk.qcow2\n"
           "  platter info --output json --backing-chain overlay.qcow2\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    image_.DeclareParent(app);
    app.add_option("--output", output_, "human or json")->check(CLI::IsMember({"human", "json"}));
    app.add_flag("--backing-chain", chain_, "Show the parents as well (opens them)");
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
    image_.info_only = true;
    std::vector<std::string> warnings;
    auto chain = TRY(ReadChainInfo(path_, TRY(image_.ToDiskOptions(false)), image_.MakeGate(),
                                   chain_, &warnings));
    for (const std::string& warning : warnings) console.Warn(warning);
    if (output_ == "json") {
      auto all = nlohmann::ordered_json::array();
      for (const ChainEntry& entry : chain) all.push_back(ToJson(entry));
      console.Print("{}\n", (chain_ ? all : all[0]).dump(4));
      return {};
    }
    for (size_t i = 0; i < chain.size(); ++i) {
      if (i > 0) console.Out("\n");
      console.Out(InfoToText(chain[i].info, chain[i].path, ActualSize(chain[i].path)));
      for (const Facts& facts : chain[i].around) {
        console.Print("taken out of:\n{}", FactsToText(facts, 4));
      }
    }
    return {};
  }

  static nlohmann::ordered_json ToJson(const ChainEntry& entry) {
    auto json = InfoToJson(entry.info, entry.path, ActualSize(entry.path));
    for (const Facts& facts : entry.around) json["taken-out-of"].push_back(FactsToJson(facts));
    return json;
  }

  ImageOptions image_;
  std::string path_, output_ = "human";
  bool chain_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeInfoCommand() { return std::make_unique<InfoCommand>(); }

}  // namespace platter
