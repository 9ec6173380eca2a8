// platter resize: grow or shrink the guest's disk.
#include <CLI/CLI.hpp>

#include "base/size.h"
#include "tools/command.h"
#include "tools/image_options.h"

namespace platter {
namespace {

class ResizeCommand : public Command {
 public:
  std::string_view name() const override { return "resize"; }
  std::string_view summary() const override { return "Change the size of an image"; }
  std::string_view examples() const override {
    return "  platter resize disk.qcow2 +10G\n"
           "  platter resize --shrink disk.qcow2 20G\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    app.add_flag("--shrink", shrink_,
                 "Allow the disk to become smaller: what lies past the new end is lost");
    app.add_option("--preallocation", preallocation_, "How to allocate the added space")
        ->transform(CLI::CheckedTransformer(
            std::map<std::string, Preallocation>{{"off", Preallocation::kOff},
                                                 {"metadata", Preallocation::kMetadata},
                                                 {"falloc", Preallocation::kFalloc},
                                                 {"full", Preallocation::kFull}}))
        ->type_name("off|metadata|falloc|full");
    app.add_flag("-q,--quiet", quiet_, "Print errors only");
    app.add_option("FILE", path_)->required();
    app.add_option("SIZE", size_text_, "New size, or +SIZE, or -SIZE")->required();
  }

  int Run(Console& console) override {
    Result<> resized = Resize(console);
    if (resized) return 0;
    console.Report(resized.error());
    return 1;
  }

 private:
  Result<> Resize(Console& console) {
    image_.quiet = quiet_;
    auto disk = TRY(image_.Open(path_, true, console));
    uint64_t old_size = disk->info().size;
    uint64_t size = TRY(NewSize(old_size));
    if (size == 0) return Fail(Code::kOutOfRange, "the new size must be positive");
    if (size < old_size && !shrink_) {
      return Fail(Code::kRefused,
                  "'{}' would shrink from {} to {} bytes and lose its end: use "
                  "--shrink if you mean it",
                  Printable(path_, 4096), old_size, size);
    }
    if (size < old_size && preallocation_ != Preallocation::kOff)
      return Fail(Code::kUnsupported, "--preallocation is for growing images");
    Resizer* resizer = disk->resizer();
    if (!resizer)
      return Fail(Code::kUnsupported, "{} images cannot be resized", disk->info().format);
    TRY_AS(Printable(path_, 4096), resizer->Resize(size, preallocation_));
    TRY(disk->Flush());
    if (!quiet_) console.Out("Image resized.\n");
    return {};
  }

  Result<uint64_t> NewSize(uint64_t old_size) const {
    bool grow = size_text_.starts_with('+'), shrink = size_text_.starts_with('-');
    uint64_t amount = TRY(ParseSize(std::string_view(size_text_).substr(grow || shrink ? 1 : 0)));
    if (!grow && !shrink) return amount;
    if (shrink && amount >= old_size)
      return Fail(Code::kOutOfRange, "the new size must be positive: the disk has only {} bytes",
                  old_size);
    uint64_t size = grow ? old_size + amount : old_size - amount;
    if (size > INT64_MAX) return Fail(Code::kOutOfRange, "the new size is over 8 EiB");
    return size;
  }

  ImageOptions image_;
  std::string path_, size_text_;
  Preallocation preallocation_ = Preallocation::kOff;
  bool shrink_ = false, quiet_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeResizeCommand() { return std::make_unique<ResizeCommand>(); }

}  // namespace platter
