// platter create: a new, empty image, or an overlay of an existing one.
#include <CLI/CLI.hpp>
#include <fmt/ranges.h>

#include "base/size.h"
#include "cow/create.h"
#include "tools/command.h"
#include "tools/convert.h"
#include "tools/image_options.h"
#include "tools/products.h"

namespace platter {
namespace {

class CreateCommand : public Command {
 public:
  std::string_view name() const override { return "create"; }
  std::string_view summary() const override { return "Make a new image"; }
  std::string_view examples() const override {
    return "  platter create -f qcow2 disk.qcow2 20G\n"
           "  platter create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2\n"
           "  platter create -f qcow2 -o cluster_size=2M,extended_l2=on "
           "big.qcow2 4T\n"
           "  platter create -f qcow2 -o encrypt.format=luks --secret "
           "file:key.txt safe.qcow2 10G\n"
           "  platter create --for hyperv disk.vhdx 40G\n"
           "  platter create -f qcow2 -o help\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    app.add_option("-o,--options", lists_, "Options of the format; -o help lists them")
        ->type_name("NAME=VALUE")
        ->allow_extra_args(false);
    app.add_option("--for", product_,
                   "Choose format, options and size as this product takes them: " +
                       fmt::format("{}", fmt::join(ProductNames(), ", ")))
        ->type_name("PRODUCT");
    app.add_option("-b,--backing", parent_, "Make it an overlay of FILE (its parent)")
        ->type_name("FILE");
    app.add_option("-F,--backing-format", parent_format_, "Format of FILE")->type_name("FMT");
    app.add_flag("-u,--unsafe", unsafe_, "Do not open the parent; SIZE is needed then");
    app.add_flag("--force", force_, "Replace an existing file");
    app.add_flag("--reproducible", reproducible_, "The same arguments give the same bytes");
    app.add_flag("-q,--quiet", quiet_, "Print errors only");
    app.add_option("FILE", path_);
    app.add_option("SIZE", size_text_, "Bytes, or with k, M, G, T, P; may be left out with -b");
  }

  int Run(Console& console) override {
    if (image_.format.empty() && product_.empty()) image_.format = "raw";
    if (lists_.size() == 1 && (lists_[0] == "help" || lists_[0] == "?"))
      return PrintFormatOptions(image_.format, console);
    Result<> created = Create(console);
    if (created) return 0;
    console.Report(created.error());
    return 1;
  }

 private:
  Result<> Create(Console& console) {
    if (path_.empty()) return Fail(Code::kOutOfRange, "create needs a file name");
    ImageWish wish{product_, image_.format, TRY(ParseOptionList(lists_))};
    std::string chosen = TRY(ChooseFor(wish, /*create=*/true));
    if (!chosen.empty() && !quiet_) console.Err(fmt::format("{}\n", chosen));
    image_.format = wish.format;
    DiskOptions disk = TRY(image_.ToDiskOptions(false));
    NewImageOptions options;
    options.format = wish.format;
    options.create.options = wish.options;
    options.create.secret = disk.secret;
    options.create.reproducible = reproducible_;
    options.direct = disk.file.direct;
    options.replace = force_;
    options.open_parent = !unsafe_;
    if (!parent_.empty())
      options.create.parent = Reference{Reference::kParent, parent_, parent_format_};
    options.size_from_parent = size_text_.empty();
    if (!size_text_.empty()) {
      options.create.size = RoundUp(TRY(ParseSize(size_text_)), wish.multiple);
    } else if (parent_.empty() || unsafe_) {
      return Fail(Code::kOutOfRange, "create needs a size");
    }
    std::vector<std::string> warnings;
    auto image = TRY(NewImage::Create(path_, options, image_.MakeGate(), &warnings));
    uint64_t size = image->disk().info().size;
    TRY(image->Commit());
    if (!quiet_) {
      for (const std::string& warning : warnings) console.Warn(warning);
      console.Print("Created '{}', {}, {} ({} bytes)\n", Printable(path_, 4096), image_.format,
                    HumanSize(size), size);
    }
    return {};
  }

  ImageOptions image_;
  std::vector<std::string> lists_;
  std::string path_, size_text_, parent_, parent_format_, product_;
  bool unsafe_ = false, force_ = false, reproducible_ = false, quiet_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeCreateCommand() { return std::make_unique<CreateCommand>(); }

}  // namespace platter
