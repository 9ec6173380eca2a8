// platter convert: the content of one or more images into a new image, or an
// existing one (-n).
#include <CLI/CLI.hpp>
#include <fmt/ranges.h>

#include "base/size.h"
#include "tools/command.h"
#include "tools/convert.h"
#include "tools/image_options.h"
#include "tools/products.h"
#include "tools/progress.h"

namespace platter {
namespace {

// A snapshot as qemu-img names it: ID, NAME, snapshot.id=ID or
// snapshot.name=NAME.
std::string SnapshotName(const std::string& text) {
  for (std::string_view prefix : {"snapshot.id=", "snapshot.name="}) {
    if (text.starts_with(prefix)) return text.substr(prefix.size());
  }
  return text;
}

// As qemu-img has it.
Result<uint64_t> ParseSparse(const std::string& text) {
  uint64_t size = TRY_AS("-S", ParseSize(text));
  if (IsAligned(size, 512) && size <= 16 * kMiB) return size;
  return Fail(Code::kOutOfRange,
              "-S {}: give a multiple of 512 up to 16M, or 0 to allocate everything", text);
}

class ConvertCommand : public Command {
 public:
  std::string_view name() const override { return "convert"; }
  std::string_view summary() const override {
    return "Convert images to another format, or copy them";
  }
  std::string_view examples() const override {
    return "  platter convert -p -O qcow2 disk.raw disk.qcow2\n"
           "  platter convert -c -o compression_type=zstd -O qcow2 disk.raw "
           "small.qcow2\n"
           "  platter convert --verify -O raw disk.qcow2 disk.raw\n"
           "  platter convert -n -O raw disk.qcow2 /dev/vg0/guest\n"
           "  platter convert --for azure disk.qcow2 disk.vhd\n"
           "  zstd -dc disk.raw.zst | platter convert -f raw -O qcow2 - "
           "disk.qcow2\n"
           "  platter convert -O qcow2 disk.raw - | ssh host 'cat > disk.qcow2'\n"
           "  platter convert -O qcow2 https://host/disk.vmdk disk.qcow2\n"
           "  platter convert -n -O raw disk.qcow2 nbd://host/disk\n"
           "Exit code: 0 whole, 1 failed (and no output left), 3 written with "
           "--salvage, but parts of\n"
           "the source could not be read and are zeros.\n";
  }

  void Declare(CLI::App& app) override {
    ConvertOptions& o = options_;
    o.source.Declare(app);
    o.source.DeclareParent(app);
    app.add_option("-O,--target-format", wish_.format, "Format of the output; default raw")
        ->type_name("FMT");
    app.add_option("--for", wish_.product,
                   "Choose format, options and size as this product takes them: " +
                       fmt::format("{}", fmt::join(ProductNames(), ", ")))
        ->type_name("PRODUCT");
    app.add_option("-o,--options", target_lists_,
                   "Options of the output format; -o help lists them")
        ->type_name("NAME=VALUE")
        ->allow_extra_args(false);
    app.add_option("-b,-B,--backing", o.parent, "Make the output an overlay of FILE")
        ->type_name("FILE");
    app.add_option("-F,--backing-format", o.parent_format, "Format of FILE")->type_name("FMT");
    app.add_flag("-c,--compress", o.copy.compress, "Write compressed clusters");
    app.add_option("--level", o.copy.level, "Compression level, 1 (fast) to 9 (small)")
        ->check(CLI::Range(1, 9));
    app.add_flag("-n,--no-create", o.no_create, "Write into the existing output image or device");
    app.add_flag("--target-is-zero", o.target_is_zero,
                 "With -n: the output reads as zeros already");
    app.add_option("-l,--snapshot", snapshot_, "Convert an internal snapshot, by id or name")
        ->type_name("SNAP");
    app.add_option("-S,--sparse", sparse_,
                   "Runs of zeros this long become holes; 0: everything is written, "
                   "zeros too; default 4k")
        ->type_name("SIZE");
    app.add_option("-r,--rate-limit", rate_, "Bytes per second at most")->type_name("SIZE");
    app.add_flag("--salvage", o.copy.salvage, "What cannot be read becomes zeros, and is told");
    app.add_flag("--verify", o.verify,
                 "Read the output back and compare its content hash with the source's");
    app.add_flag("--with-snapshots", o.with_snapshots,
                 "Keep the source's internal snapshots (qcow2), by name; their times are new");
    app.add_flag("--bitmaps", o.bitmaps, "Copy the source's bitmaps, too");
    app.add_flag("--skip-broken-bitmaps", o.skip_broken_bitmaps,
                 "With --bitmaps: leave out those that are not to be trusted");
    app.add_flag("--resume", o.resume,
                 "Go on where an interrupted convert --resume stopped; what is not whole yet is "
                 "in hidden files beside the output; a source that is a device wants --verify");
    app.add_flag("--force", o.force, "Replace an existing output file");
    app.add_flag("--reproducible", o.reproducible,
                 "The same input gives the same bytes: fixed ids, times from "
                 "SOURCE_DATE_EPOCH");
    app.add_option("--target-secret", target_secret_,
                   "Passphrase for an encrypted output: file:PATH or env:NAME")
        ->type_name("WHERE");
    app.add_option("-t,--target-cache", target_cache_,
                   "none: bypass the page cache; default writeback")
        ->type_name("MODE");
    app.add_option("--threads", o.copy.threads, "Workers; default: one for each processor");
    app.add_flag("-p,--progress", o.progress.show, "Show progress");
    app.add_option("--json-progress", o.progress.json_fd,
                   "Write progress as JSON lines to this file descriptor")
        ->type_name("FD");
    app.add_flag("-q,--quiet", o.progress.quiet, "Print errors only");
    // Accepted for scripts: work is always parallel, and each worker writes
    // where it likes.
    app.add_option("-m", ignored_, "Accepted; see --threads")->type_name("N");
    app.add_flag("-W", ignored_flag_, "Accepted: writes are always out of order");
    app.add_option("FILES", files_, "Sources, and last the output; - is standard input or output")
        ->required()
        ->expected(1, 1000);
  }

  int Run(Console& console) override {
    if (target_lists_.size() == 1 && (target_lists_[0] == "help" || target_lists_[0] == "?")) {
      return PrintFormatOptions(wish_.format.empty() ? "raw" : wish_.format, console);
    }
    Result<ConvertOutcome> outcome = Convert(console);
    if (!outcome) {
      console.Report(outcome.error());
      return 1;
    }
    return outcome->unreadable_bytes > 0 ? 3 : 0;
  }

 private:
  Result<ConvertOutcome> Convert(Console& console) {
    ConvertOptions& o = options_;
    if (files_.size() < 2) return Fail(Code::kOutOfRange, "convert needs a source and an output");
    o.sources.assign(files_.begin(), files_.end() - 1);
    if (o.sources.size() > 1 && !o.source.parent.empty()) {
      return Fail(Code::kOutOfRange, "--parent is for one source; there are {}", o.sources.size());
    }
    o.target = files_.back();
    if (o.skip_broken_bitmaps && !o.bitmaps)
      return Fail(Code::kOutOfRange, "--skip-broken-bitmaps goes with --bitmaps");
    TRY(ChooseTarget(console));
    o.source.snapshot = SnapshotName(snapshot_);
    o.source.quiet = o.progress.quiet;
    o.target_direct = TRY(WantsDirect(target_cache_));
    if (!sparse_.empty()) o.copy.sparse = TRY(ParseSparse(sparse_));
    if (!rate_.empty()) o.copy.bytes_per_second = TRY(ParseSize(rate_));
    if (!target_secret_.empty()) o.target_secret = TRY(ReadSecret(target_secret_));
    return RunConvert(o, console);
  }

  // -O, -o and --for together.
  Result<> ChooseTarget(Console& console) {
    ConvertOptions& o = options_;
    if (!wish_.product.empty() && o.no_create) {
      return Fail(Code::kOutOfRange, "--for makes a new image, -n does not");
    }
    wish_.options = TRY(ParseOptionList(target_lists_));
    std::string chosen = TRY(ChooseFor(wish_, /*create=*/false));
    if (!chosen.empty() && !o.progress.quiet) console.Err(fmt::format("{}\n", chosen));
    if (!wish_.format.empty()) o.target_format = wish_.format;
    o.target_options = wish_.options;
    o.size_multiple = wish_.multiple;
    return {};
  }

  ConvertOptions options_;
  ImageWish wish_;
  std::vector<std::string> files_, target_lists_;
  std::string snapshot_, sparse_, rate_, target_secret_, target_cache_ = "writeback", ignored_;
  bool ignored_flag_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeConvertCommand() { return std::make_unique<ConvertCommand>(); }

}  // namespace platter
