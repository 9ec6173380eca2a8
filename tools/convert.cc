#include "tools/convert.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/sync.h"
#include "cow/concat_layer.h"
#include "cow/create.h"
#include "formats/format.h"
#include "formats/options.h"
#include "io/temp_file.h"
#include "tools/hash_disk.h"
#include "tools/interrupt.h"
#include "tools/stream.h"

namespace platter {
namespace {

class Converter {
 public:
  Converter(ConvertOptions& options, Console& console) : o_(options), console_(console) {}

  Result<ConvertOutcome> Run() {
    TRY(CheckOptions());
    CancelOnInterrupt cancel(progress_);
    o_.copy.progress = &progress_;
    o_.copy.unreadable = [this](Range range, const Error& error) { Unreadable(range, error); };
    if (!from_stdin()) source_ = TRY(OpenSources());
    if (o_.target == "-") {
      TRY(ToStdout());
    } else if (o_.no_create) {
      TRY(IntoExisting());
    } else {
      TRY(IntoNew(o_.target));
    }
    if (outcome_.unreadable_bytes > 0 && !o_.progress.quiet) {
      console_.Warn(
          fmt::format("{} bytes of the source could not be read and "
                      "are zeros in the output",
                      outcome_.unreadable_bytes));
    }
    return outcome_;
  }

 private:
  bool from_stdin() const { return stdin_is_raw_; }

  Result<> CheckOptions() {
    TRY(FindFormat(o_.target_format));
    bool has_stdin = std::find(o_.sources.begin(), o_.sources.end(), "-") != o_.sources.end();
    if (has_stdin && o_.sources.size() > 1)
      return Fail(Code::kUnsupported, "standard input cannot be one of several sources");
    stdin_is_raw_ = has_stdin && (o_.source.format.empty() || o_.source.format == "raw");
    if (has_stdin && !stdin_is_raw_) o_.sources[0] = TRY(SpoolToFile(STDIN_FILENO));
    if (stdin_is_raw_ && (o_.no_create || o_.verify || !o_.parent.empty())) {
      return Fail(Code::kUnsupported,
                  "a raw stream from standard input goes into a new image "
                  "only, without -n, -B and --verify");
    }
    if (stdin_is_raw_ && o_.target == "-")
      return Fail(Code::kUnsupported,
                  "from standard input to standard output: "
                  "give one of them a file name");
    if (o_.target_is_zero && !o_.no_create)
      return Fail(Code::kOutOfRange, "--target-is-zero goes with -n");
    if (o_.no_create && !o_.target_options.empty())
      return Fail(Code::kOutOfRange, "-o makes a new image, -n does not");
    if (o_.verify && o_.copy.salvage)
      return Fail(Code::kOutOfRange, "--verify and --salvage exclude one another");
    return {};
  }

  Result<std::unique_ptr<Layer>> OpenSources() {
    std::vector<std::unique_ptr<Layer>> disks;
    for (const std::string& path : o_.sources) {
      auto disk = TRY(o_.source.Open(path, false, console_));
      if (disks.empty() && !o_.parent.empty() && disk->depth() > 1) {
        source_parent_ = {disk->path(1), disk->layer(1).info().format};
      }
      disks.push_back(std::move(disk));
    }
    if (disks.size() > 1 && !o_.parent.empty())
      return Fail(Code::kUnsupported, "-B with several sources");
    return disks.size() == 1 ? std::move(disks[0]) : TRY(ConcatLayer::Join(std::move(disks)));
  }

  // The output appears under its name when everything is in it.
  Result<> IntoNew(const std::string& path) {
    NewImageOptions create;
    create.format = o_.target_format;
    create.create.size = RoundUp(source_ ? source_->info().size : 0, o_.size_multiple);
    create.create.options = o_.target_options;
    create.create.secret = o_.target_secret ? &*o_.target_secret : nullptr;
    create.create.reproducible = o_.reproducible;
    create.direct = o_.target_direct;
    create.replace = o_.force;
    if (!o_.parent.empty())
      create.create.parent = Reference{Reference::kParent, o_.parent, o_.parent_format};
    std::vector<std::string> warnings;
    auto image = TRY(NewImage::Create(path, create, o_.source.MakeGate(), &warnings));
    for (const std::string& warning : warnings) console_.Warn(warning);

    Disk& disk = image->disk();
    if (o_.target == "-") TRY(CheckAlone(disk.info()));
    // An overlay shows its parent where nothing is written: zeros must be
    // written there as well.
    o_.copy.target_is_zero = disk.depth() == 1 && image->starts_zero();
    TRY(Fill(disk));
    TRY(Verify(disk));
    return image->Commit();
  }

  Result<> IntoExisting() {
    ImageOptions target;
    target.format = o_.target_format;
    target.quiet = o_.progress.quiet;
    DiskOptions options = TRY(target.ToDiskOptions(true));
    options.file.direct = o_.target_direct;
    options.secret = o_.target_secret ? &*o_.target_secret : nullptr;
    std::vector<std::string> warnings;
    auto disk = TRY(Disk::Open(o_.target, options, o_.source.MakeGate(), &warnings));
    if (disk->info().size < source_->info().size) {
      return Fail(Code::kOutOfRange, "'{}' has {} bytes, the source {}: the output is too small",
                  Printable(o_.target, 4096), disk->info().size, source_->info().size);
    }
    o_.copy.target_is_zero = o_.target_is_zero;
    TRY(Fill(*disk));
    return Verify(*disk);
  }

  Result<> ToStdout() {
    if (o_.target_format == "raw") {
      ProgressDisplay display(console_, progress_, o_.progress);
      return ExportRaw(*source_, STDOUT_FILENO, o_.copy.threads, progress_);
    }
    if (auto image = TRY(AsStream())) {
      ProgressDisplay display(console_, progress_, o_.progress);
      return ExportImage(*source_, *image, STDOUT_FILENO, o_.copy.sparse == 0, o_.copy.threads,
                         progress_);
    }
    // The header comes first and names tables whose place and content are known last: the sizes of
    // compressed units are not known before they are compressed.
    const std::string folder = TRY(MakeTempFolder());
    const std::string path = fmt::format("{}/image.{}", folder, o_.target_format);
    Result<> done = IntoNew(path);
    if (done) done = MoveFileTo(path, STDOUT_FILENO);
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
    return done;
  }

  // Standard output takes one file; what is beside it would be lost.
  Result<> CheckAlone(const Info& info) const {
    for (const Reference& reference : info.references) {
      if (reference.role != Reference::kData) continue;
      return Fail(Code::kUnsupported,
                  "this kind of {} has its data in another file ('{}'), and standard output takes "
                  "one: give the output a name",
                  info.format, Printable(reference.name, 4096));
    }
    return {};
  }

  // The output as a stream, if it can be one: not where the copy itself decides what is stored how,
  // or where it is to be read again.
  Result<std::unique_ptr<ImageStream>> AsStream() {
    const Format* format = TRY(FindFormat(o_.target_format));
    const auto& options = o_.target_options;
    bool plain = !o_.copy.compress && !o_.copy.salvage && o_.copy.bytes_per_second == 0 &&
                 !o_.verify && o_.parent.empty() && !o_.target_secret &&
                 !options.contains("size") && !options.contains("backing_file");
    if (!format->stream || !plain) return nullptr;
    CreateOptions create{.size = source_->info().size, .options = o_.target_options};
    create.reproducible = o_.reproducible;
    auto image = format->stream(create);
    if (!image && image.error().code() == Code::kUnsupported) return nullptr;
    return image;
  }

  Result<> Fill(Disk& disk) {
    if (o_.copy.compress && !disk.info().compressed_units) {
      return Fail(Code::kUnsupported, "{} images cannot hold compressed clusters{}",
                  disk.info().format, disk.info().encrypted ? " when they are encrypted" : "");
    }
    {
      ProgressDisplay display(console_, progress_, o_.progress);
      if (from_stdin()) {
        TRY_AS("standard input", ImportRaw(STDIN_FILENO, disk, o_.copy));
        TRY(RoundSize(disk));
      } else {
        o_.copy.skip_parent = SharesParentWith(disk);
        TRY(Copy(*source_, disk, {0, source_->info().size}, o_.copy));
      }
    }
    return disk.Flush();
  }

  // The end of a stream is known when it is there.
  Result<> RoundSize(Disk& disk) {
    uint64_t size = RoundUp(disk.info().size, o_.size_multiple);
    if (size == disk.info().size) return {};
    Resizer* resizer = disk.resizer();
    if (!resizer) return Fail(Code::kUnsupported, "{} cannot be resized", disk.info().format);
    return resizer->Resize(size, Preallocation::kOff);
  }

  // With -B and a source that is an overlay of the very same parent, only what
  // the source itself holds is copied; with any other parent all content is, so
  // that the output reads the same.
  bool SharesParentWith(Disk& disk) const {
    return !o_.parent.empty() && disk.depth() > 1 &&
           source_parent_ == ParentImage{disk.path(1), disk.layer(1).info().format};
  }

  Result<> Verify(Disk& disk) {
    if (!o_.verify) return {};
    Progress verifying;
    std::string want = TRY_AS("--verify", HashDisk(*source_, o_.copy.threads, verifying));
    std::string have = TRY_AS("--verify", HashDisk(disk, o_.copy.threads, verifying));
    if (disk.info().size == source_->info().size && want != have) {
      return Fail(Code::kIo, "--verify: the output reads back as {}, the source as {}", have, want);
    }
    if (disk.info().size != source_->info().size) {
      CopyOptions compare;
      compare.threads = o_.copy.threads;
      if (auto difference = TRY(Compare(*source_, disk, compare))) {
        return Fail(Code::kIo, "--verify: the output differs from the source at offset {}",
                    *difference);
      }
    }
    if (!o_.progress.quiet) console_.Err(fmt::format("verified: {}\n", want));
    return {};
  }

  void Unreadable(Range range, const Error& error) {
    std::lock_guard lock(unreadable_mutex_);
    outcome_.unreadable_bytes += range.length;
    if (!o_.progress.quiet) {
      console_.Warn(fmt::format("bytes {} to {} are zeros in the output: {}", range.offset,
                                range.end(), error.text()));
    }
  }

  ConvertOptions& o_;
  Console& console_;
  Progress progress_;
  std::unique_ptr<Layer> source_;  // null while the source is a raw stream
  // What a disk stands on: one file may be read in several ways.
  struct ParentImage {
    std::string path, format;
    bool operator==(const ParentImage&) const = default;
  };
  ParentImage source_parent_;
  bool stdin_is_raw_ = false;
  Mutex unreadable_mutex_;  // guards outcome_ while workers run
  ConvertOutcome outcome_;
};

}  // namespace

Result<ConvertOutcome> RunConvert(ConvertOptions& options, Console& console) {
  return Converter(options, console).Run();
}

int PrintFormatOptions(const std::string& name, Console& console) {
  Result<const Format*> format = FindFormat(name);
  if (!format) {
    console.Report(format.error());
    return 1;
  }
  console.Print("Options of {}:\n", (*format)->name);
  for (const OptionHelp& option : ListCreateOptions(**format)) {
    console.Print("  {:<22} {}\n", option.name, option.help);
  }
  return 0;
}

}  // namespace platter
