// platter hash: one hash for one content, whatever the format it is kept in.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/command.h"
#include "tools/hash_disk.h"
#include "tools/image_options.h"
#include "tools/interrupt.h"
#include "tools/progress.h"

namespace platter {
namespace {

class HashCommand : public Command {
 public:
  std::string_view name() const override { return "hash"; }
  std::string_view summary() const override {
    return "Hash an image's content, the same for every format";
  }
  std::string_view examples() const override {
    return "  platter hash disk.raw disk.qcow2          the same line twice\n"
           "  platter hash --plain disk.qcow2           the SHA-256 of the raw "
           "bytes, as sha256sum\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    image_.DeclareParent(app);
    app.add_flag("--plain", plain_, "Plain SHA-256 of all guest bytes (one core, holes cost time)");
    app.add_option("-l,--snapshot", image_.snapshot, "Of an internal snapshot, by id or name")
        ->type_name("SNAP");
    app.add_option("--output", output_, "human or json")->check(CLI::IsMember({"human", "json"}));
    app.add_flag("-p,--progress", progress_.show, "Show progress");
    app.add_flag("-q,--quiet", progress_.quiet, "Print the hash and errors only");
    app.add_option("--threads", threads_, "Workers; default: one for each processor");
    app.add_option("FILE", paths_)->required();
  }

  int Run(Console& console) override {
    image_.quiet = progress_.quiet;
    int code = 0;
    auto list = nlohmann::ordered_json::array();
    for (const std::string& path : paths_) {
      Result<std::string> hash = HashOne(path, console);
      if (!hash) {
        console.Report(hash.error());
        code = 1;
      } else if (output_ == "json") {
        list.push_back({{"filename", Printable(path, 4096)}, {"hash", *hash}});
      } else {
        console.Print("{}  {}\n", *hash, Printable(path, 4096));
      }
    }
    if (output_ == "json") console.Print("{}\n", list.dump(4));
    return code;
  }

 private:
  Result<std::string> HashOne(const std::string& path, Console& console) {
    auto disk = TRY(image_.Open(path, false, console));
    Progress progress;
    CancelOnInterrupt cancel(progress);
    ProgressDisplay display(console, progress, progress_);
    return plain_ ? PlainHashDisk(*disk, threads_, progress) : HashDisk(*disk, threads_, progress);
  }

  ImageOptions image_;
  std::vector<std::string> paths_;
  std::string output_ = "human";
  bool plain_ = false;
  unsigned threads_ = 0;
  ProgressOptions progress_;
};

}  // namespace

std::unique_ptr<Command> MakeHashCommand() { return std::make_unique<HashCommand>(); }

}  // namespace platter
