// platter amend: change what an image is, and leave what it holds.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>

#include "base/size.h"
#include "formats/in_place_registry.h"
#include "tools/command.h"
#include "tools/image_options.h"
#include "tools/rewrite.h"

namespace platter {
namespace {

// These decide how everything lies, so the image is written anew.
constexpr std::array<std::string_view, 3> kAnew = {"cluster_size", "compression_type",
                                                   "extended_l2"};

class AmendCommand : public Command {
 public:
  std::string_view name() const override { return "amend"; }
  std::string_view summary() const override { return "Change the options of an image"; }
  std::string_view examples() const override {
    return "  platter amend -o compat=1.1,lazy_refcounts=on disk.qcow2\n"
           "  platter amend -o refcount_bits=64 disk.qcow2\n"
           "  platter amend -o cluster_size=2M,compression_type=zstd disk.qcow2\n"
           "  platter amend -o encrypt.state=active --secret file:old.txt --new-secret "
           "file:new.txt "
           "safe.qcow2\n"
           "  platter amend -o encrypt.state=inactive,encrypt.keyslot=0 safe.qcow2\n"
           "  platter amend -f qcow2 -o help\n"
           "Cluster size, compression type and extended_l2 need an image beside the old one, "
           "which\n"
           "takes its place when it is whole.\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    app.add_option("-o,--options", lists_, "Options of the format; -o help lists them")
        ->type_name("NAME=VALUE")
        ->allow_extra_args(false);
    app.add_option("--new-secret", new_secret_,
                   "Passphrase of a new LUKS key slot: file:PATH or env:NAME")
        ->type_name("WHERE");
    app.add_option("--old-secret", old_secret_,
                   "Passphrase whose LUKS key slots are erased: file:PATH or env:NAME")
        ->type_name("WHERE");
    app.add_flag("-q,--quiet", image_.quiet, "Print errors only");
    app.add_option("FILE", path_);
  }

  int Run(Console& console) override {
    const bool help = lists_.size() == 1 && (lists_[0] == "help" || lists_[0] == "?");
    Result<> done = help ? Help(console) : Amend(console);
    if (done) return 0;
    console.Report(done.error());
    return 1;
  }

 private:
  Result<> Help(Console& console) {
    const Format* format = TRY(FindFormat(image_.format.empty() ? "qcow2" : image_.format));
    const InPlace* in_place = FindInPlace(*format);
    if (!in_place) return Fail(Code::kUnsupported, "{} images cannot be amended", format->name);
    console.Print("Options of {} that can be changed:\n", format->name);
    for (const OptionHelp& option : in_place->amend_options) {
      console.Print("  {:<22} {}\n", option.name, option.help);
    }
    console.Print("and, by writing the image anew: cluster_size, compression_type, extended_l2\n");
    return {};
  }

  Result<> Amend(Console& console) {
    if (path_.empty()) return Fail(Code::kOutOfRange, "amend needs a file name");
    AmendOptions amend{.options = TRY(ParseOptionList(lists_))};
    if (amend.options.empty()) return Fail(Code::kOutOfRange, "amend needs -o NAME=VALUE");
    TRY(Resize(amend.options, console));
    if (amend.options.empty()) return {};
    const bool anew = std::ranges::any_of(
        kAnew, [&](auto name) { return amend.options.contains(std::string(name)); });
    if (anew) return RewriteImage(path_, image_, amend.options, console);
    TRY(PrepareVersion2(amend.options, console));

    std::optional<Secret> new_secret, old_secret;
    if (!new_secret_.empty()) new_secret = TRY(ReadSecret(new_secret_));
    if (!old_secret_.empty()) old_secret = TRY(ReadSecret(old_secret_));
    if (new_secret) amend.new_secret = &*new_secret;
    if (old_secret) amend.old_secret = &*old_secret;
    const DiskOptions options = TRY(image_.ToDiskOptions(true));
    const Gate gate = image_.MakeGate();
    std::vector<std::string> warnings;
    auto image = TRY(OpenTopImage(path_, options, gate, &warnings));
    const InPlace* in_place = FindInPlace(*image.format);
    if (!in_place) {
      return Fail(Code::kUnsupported, "'{}': {} images cannot be amended", Printable(path_, 4096),
                  image.format->name);
    }
    return in_place
        ->amend(*image.store,
                {.writable = true, .secret = options.secret, .opener = image.opener.get()}, amend)
        .WithPrefix(fmt::format("{} '{}'", image.format->name, Printable(path_, 4096)));
  }

  // As qemu-img's amend has it.
  Result<> Resize(std::map<std::string, std::string>& options, Console& console) {
    auto size = options.extract("size");
    if (size.empty()) return {};
    const uint64_t wanted = TRY_AS("size", ParseSize(size.mapped()));
    auto disk = TRY(image_.Open(path_, true, console));
    if (wanted < disk->info().size) {
      return Fail(Code::kRefused, "size: the disk would shrink; use resize --shrink");
    }
    if (!disk->resizer()) {
      return Fail(Code::kUnsupported, "{} images cannot be resized", disk->info().format);
    }
    TRY(disk->resizer()->Resize(wanted, Preallocation::kOff));
    return disk->Flush();
  }

  Result<> PrepareVersion2(const std::map<std::string, std::string>& options, Console& console) {
    auto compat = options.find("compat");
    if (compat == options.end() || (compat->second != "0.10" && compat->second != "v2")) return {};
    ImageOptions plain = image_;
    plain.no_backing = true;
    auto disk = TRY(plain.Open(path_, true, console));
    const auto& references = disk->info().references;
    const bool parent = std::ranges::any_of(references, [](const Reference& reference) {
      return reference.role == Reference::kParent;
    });
    return WriteOutZeros(disk->layer(0), parent);
  }

  ImageOptions image_;
  std::vector<std::string> lists_;
  std::string path_, new_secret_, old_secret_;
};

}  // namespace

std::unique_ptr<Command> MakeAmendCommand() { return std::make_unique<AmendCommand>(); }

}  // namespace platter
