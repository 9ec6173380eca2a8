// platter bitmap: the dirty bitmaps inside an image.
#include <CLI/CLI.hpp>

#include <algorithm>

#include "base/size.h"
#include "io/bitmapper.h"
#include "tools/command.h"
#include "tools/image_options.h"

namespace platter {
namespace {

class BitmapCommand : public Command {
 public:
  std::string_view name() const override { return "bitmap"; }
  std::string_view summary() const override {
    return "Add, remove, clear, enable, disable or merge the dirty bitmaps inside an image";
  }
  std::string_view examples() const override {
    return "  platter bitmap --add disk.qcow2 monday\n"
           "  platter bitmap --add -g 64k --disable disk.qcow2 archive\n"
           "  platter bitmap --merge monday --merge tuesday disk.qcow2 archive\n"
           "  platter bitmap --merge monday -b other.qcow2 -F qcow2 disk.qcow2 archive\n"
           "  platter map --bitmap monday disk.qcow2        what is dirty in it\n"
           "Several actions are done in the order in which they are given. An enabled bitmap\n"
           "follows the writes of every program that knows bitmaps.\n";
  }

  void Declare(CLI::App& app) override {
    app_ = &app;
    image_.Declare(app);
    // The library has two overloads for a text literal.
    auto flag = [&](const char* name, const std::string& help) { return app.add_flag(name, help); };
    actions_ = {
        {flag("--add", "Make BITMAP, empty and enabled"), &BitmapCommand::Add},
        {flag("--remove", "Remove BITMAP"), &BitmapCommand::Remove},
        {flag("--clear", "Nothing is dirty in BITMAP"), &BitmapCommand::Clear},
        {flag("--enable", "BITMAP follows what is written"), &BitmapCommand::Enable},
        {flag("--disable", "BITMAP stays as it is"), &BitmapCommand::Disable},
        {app.add_option("--merge", merged_, "What is dirty in SOURCE is dirty in BITMAP, too")
             ->type_name("SOURCE")
             ->allow_extra_args(false),
         &BitmapCommand::Merge},
    };
    app.add_option("-b,--source-file", source_path_, "SOURCE is a bitmap of this image")
        ->type_name("FILE");
    app.add_option("-F,--source-format", source_.format, "Format of that image")->type_name("FMT");
    app.add_option("-g,--granularity", granularity_,
                   "With --add: bytes of disk for one bit; default the cluster size, at least 4k")
        ->type_name("SIZE");
    app.add_flag("-q,--quiet", image_.quiet, "Print errors only");
    app.add_option("FILE", path_)->required();
    app.add_option("BITMAP", bitmap_, "Its name")->required();
  }

  int Run(Console& console) override {
    Result<> done = Change(console);
    if (done) return 0;
    console.Report(done.error());
    return 1;
  }

 private:
  using Action = Result<> (BitmapCommand::*)(Bitmapper&, const std::string& merged);

  Result<> Change(Console& console) {
    auto given = [&](Action action) {
      return std::any_of(actions_.begin(), actions_.end(), [&](const auto& each) {
        return each.second == action && each.first->count() > 0;
      });
    };
    if (!granularity_.empty() && !given(&BitmapCommand::Add)) {
      return Fail(Code::kOutOfRange, "-g goes with --add");
    }
    if (!source_path_.empty() && !given(&BitmapCommand::Merge)) {
      return Fail(Code::kOutOfRange, "-b goes with --merge");
    }
    if (!source_.format.empty() && source_path_.empty()) {
      return Fail(Code::kOutOfRange, "-F goes with -b");
    }
    image_.no_backing = true;  // bitmaps are of the image alone
    auto disk = TRY(image_.Open(path_, true, console));
    Bitmapper* bitmaps = disk->bitmapper();
    if (!bitmaps) {
      return Fail(Code::kUnsupported, "'{}': {} images hold no bitmaps", Printable(path_, 4096),
                  disk->info().format);
    }
    std::unique_ptr<Disk> source;
    if (!source_path_.empty()) source = TRY(OpenSource(*disk, console));
    source_bitmaps_ = source ? source->bitmapper() : bitmaps;
    return DoAll(*bitmaps);
  }

  Result<std::unique_ptr<Disk>> OpenSource(const Disk& disk, Console& console) {
    source_.no_backing = true;
    source_.quiet = image_.quiet;
    auto source = TRY(source_.Open(source_path_, false, console));
    if (!source->bitmapper()) {
      return Fail(Code::kUnsupported, "'{}': {} images hold no bitmaps",
                  Printable(source_path_, 4096), source->info().format);
    }
    if (source->info().size != disk.info().size) {
      return Fail(Code::kOutOfRange,
                  "'{}' has a disk of {} bytes, '{}' one of {}: their bitmaps cannot be merged",
                  Printable(source_path_, 4096), source->info().size, Printable(path_, 4096),
                  disk.info().size);
    }
    return source;
  }

  // In the order of the command line.
  Result<> DoAll(Bitmapper& bitmaps) {
    size_t merges = 0, done = 0;
    for (const CLI::Option* option : app_->parse_order()) {
      for (const auto& [declared, action] : actions_) {
        if (declared != option) continue;
        const bool merge = action == &BitmapCommand::Merge;
        TRY((this->*action)(bitmaps, merge ? merged_.at(merges++) : std::string()));
        ++done;
      }
    }
    if (done > 0) return {};
    return Fail(Code::kOutOfRange,
                "bitmap needs --add, --remove, --clear, --enable, --disable or --merge");
  }

  Result<> Add(Bitmapper& bitmaps, const std::string&) {
    Bitmapper::NewBitmap bitmap{.name = bitmap_};
    if (!granularity_.empty()) {
      bitmap.granularity = TRY_AS("--granularity", ParseSize(granularity_));
      if (bitmap.granularity == 0) return Fail(Code::kOutOfRange, "granularity 0");
    }
    return bitmaps.AddBitmap(bitmap);
  }
  Result<> Remove(Bitmapper& bitmaps, const std::string&) { return bitmaps.RemoveBitmap(bitmap_); }
  Result<> Clear(Bitmapper& bitmaps, const std::string&) { return bitmaps.ClearBitmap(bitmap_); }
  Result<> Enable(Bitmapper& bitmaps, const std::string&) {
    return bitmaps.EnableBitmap(bitmap_, true);
  }
  Result<> Disable(Bitmapper& bitmaps, const std::string&) {
    return bitmaps.EnableBitmap(bitmap_, false);
  }
  Result<> Merge(Bitmapper& bitmaps, const std::string& merged) {
    return bitmaps.MergeBitmap(bitmap_, *source_bitmaps_, merged);
  }

  CLI::App* app_ = nullptr;
  ImageOptions image_, source_;
  std::vector<std::pair<CLI::Option*, Action>> actions_;
  std::vector<std::string> merged_;
  std::string path_, bitmap_, source_path_, granularity_;
  Bitmapper* source_bitmaps_ = nullptr;
};

}  // namespace

std::unique_ptr<Command> MakeBitmapCommand() { return std::make_unique<BitmapCommand>(); }

}  // namespace platter
