// platter dd: a part of a disk, in blocks, as a new image.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <map>
#include <optional>

#include "base/size.h"
#include "cow/create.h"
#include "cow/window_layer.h"
#include "tools/command.h"
#include "tools/image_options.h"
#include "tools/interrupt.h"
#include "tools/progress.h"

namespace platter {
namespace {

class DdCommand : public Command {
 public:
  std::string_view name() const override { return "dd"; }
  std::string_view summary() const override { return "Copy a part of a disk into a new image"; }
  std::string_view examples() const override {
    return "  platter dd if=disk.qcow2 of=mbr.raw bs=512 count=1\n"
           "  platter dd -O qcow2 if=disk.raw of=rest.qcow2 bs=1M skip=100\n"
           "As dd counts: `count` blocks of `bs` bytes (default 512) are copied after `skip` "
           "blocks;\n"
           "of the last one what there is.\n";
  }

  void Declare(CLI::App& app) override {
    image_.Declare(app);
    app.add_option("-O,--target-format", format_, "Format of the output; default raw")
        ->type_name("FMT");
    app.add_flag("--force", force_, "Replace an existing output file");
    app.add_flag("-p,--progress", progress_.show, "Show progress");
    app.add_option("OPERAND", operands_, "if=FILE, of=FILE, bs=SIZE, count=N, skip=N")
        ->required()
        ->expected(1, 20);
  }

  int Run(Console& console) override {
    Result<> done = CopyBlocks(console);
    if (done) return 0;
    console.Report(done.error());
    return 1;
  }

 private:
  Result<> ReadOperands() {
    for (const std::string& operand : operands_) {
      const size_t equals = operand.find('=');
      const std::string key = operand.substr(0, equals);
      if (equals == operand.npos || !values_.contains(key)) {
        return Fail(Code::kOutOfRange,
                    "'{}' is none of if=, of=, bs=, count= and skip=", Printable(operand));
      }
      values_[key] = operand.substr(equals + 1);
    }
    for (const char* needed : {"if", "of"}) {
      if (values_[needed].empty()) return Fail(Code::kOutOfRange, "dd needs {}=FILE", needed);
    }
    return {};
  }

  Result<std::optional<uint64_t>> Number(const std::string& key) {
    const std::string& text = values_[key];
    if (text.empty()) return std::optional<uint64_t>();
    return std::optional<uint64_t>(TRY_AS(key + "=", ParseSize(text)));
  }

  // What is to be copied of a disk of `size` bytes.
  Result<Range> Part(uint64_t size) {
    const uint64_t block = TRY(Number("bs")).value_or(512);
    if (block == 0 || block > INT32_MAX) {
      return Fail(Code::kOutOfRange, "bs={}: a block has 1 to {} bytes", block, INT32_MAX);
    }
    auto bytes = [&](uint64_t blocks) {
      return blocks > UINT64_MAX / block ? UINT64_MAX : blocks * block;
    };
    const uint64_t start = std::min(bytes(TRY(Number("skip")).value_or(0)), size);
    const auto count = TRY(Number("count"));
    return Range{start, std::min(count ? bytes(*count) : UINT64_MAX, size - start)};
  }

  Result<> CopyBlocks(Console& console) {
    TRY(ReadOperands());
    auto disk = TRY(image_.Open(values_["if"], false, console));
    const Range part = TRY(Part(disk->info().size));
    auto source = TRY(WindowLayer::Open(std::move(disk), part));
    NewImageOptions create{.format = format_, .replace = force_};
    create.create.size = part.length;
    std::vector<std::string> warnings;
    auto image = TRY(NewImage::Create(values_["of"], create, image_.MakeGate(), &warnings));
    for (const std::string& warning : warnings) console.Warn(warning);
    Progress progress;
    CopyOptions copy;
    copy.target_is_zero = image->starts_zero();
    copy.progress = &progress;
    {
      CancelOnInterrupt cancel(progress);
      ProgressDisplay display(console, progress, progress_);
      TRY(Copy(*source, image->disk(), {0, part.length}, copy));
    }
    return image->Commit();
  }

  ImageOptions image_;
  ProgressOptions progress_;
  std::string format_ = "raw";
  bool force_ = false;
  std::vector<std::string> operands_;
  std::map<std::string, std::string> values_{
      {"if", ""}, {"of", ""}, {"bs", ""}, {"count", ""}, {"skip", ""}};
};

}  // namespace

std::unique_ptr<Command> MakeDdCommand() { return std::make_unique<DdCommand>(); }

}  // namespace platter
