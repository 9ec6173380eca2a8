#include "tools/convert.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "base/sync.h"
#include "cow/concat_layer.h"
#include "cow/create.h"
#include "cow/dirty_view.h"
#include "formats/format.h"
#include "formats/options.h"
#include "io/temp_file.h"
#include "tools/convert_bitmaps.h"
#include "tools/convert_snapshots.h"
#include "tools/hash_disk.h"
#include "tools/interrupt.h"
#include "tools/resume.h"
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
    } else if (o_.resume) {
      TRY(IntoPartial(o_.target));
    } else {
      TRY(IntoNew(o_.target));
    }
    if (!o_.new_bitmap.empty()) {
      TRY_AS(fmt::format("'{}' is complete, but bitmap '{}' does not begin anew",
                         Printable(o_.target, 4096), Printable(o_.new_bitmap)),
             RestartBitmap(*source_, o_.new_bitmap));
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
    if (o_.bitmaps && (o_.sources.size() > 1 || from_stdin() || !o_.source.snapshot.empty())) {
      return Fail(Code::kUnsupported, "--bitmaps needs one source, and not a snapshot of it");
    }
    if (o_.with_snapshots && (o_.sources.size() > 1 || from_stdin() || o_.target == "-" ||
                              !o_.source.snapshot.empty() || !o_.parent.empty() || o_.no_create)) {
      return Fail(Code::kUnsupported,
                  "--with-snapshots takes one image into a new one, without -l, -B and -n");
    }
    if (o_.bitmaps && o_.target == "-")
      return Fail(Code::kUnsupported, "--bitmaps to standard output");
    const bool more = o_.bitmaps || o_.with_snapshots || !o_.since.empty();
    if (o_.resume && (has_stdin || more || o_.target == "-" || o_.no_create || o_.copy.salvage)) {
      return Fail(Code::kOutOfRange,
                  "--resume is for a new image from files, without -n, --salvage, --bitmaps and "
                  "--with-snapshots");
    }
    return {};
  }

  Result<std::unique_ptr<Layer>> OpenSources() {
    std::vector<std::unique_ptr<Layer>> disks;
    for (const std::string& path : o_.sources) {
      auto disk = TRY(o_.source.Open(path, !o_.new_bitmap.empty(), console_));
      if (disks.empty() && !o_.parent.empty() && disk->depth() > 1) {
        source_parent_ = {disk->path(1), disk->layer(1).info().format};
      }
      for (size_t i = 0; i < disk->depth(); ++i) {
        source_files_.push_back({disk->path(i), disk->layer(i).info().format});
      }
      disks.push_back(std::move(disk));
    }
    if (disks.size() > 1 && !o_.parent.empty())
      return Fail(Code::kUnsupported, "-B with several sources");
    const size_t dropped = disks[0]->info().snapshots.size();
    if (dropped > 0 && !o_.with_snapshots && o_.source.snapshot.empty() && !o_.progress.quiet) {
      console_.Warn(
          fmt::format("{} snapshot{} left out of the output (--with-snapshots keeps them in qcow2)",
                      dropped, dropped == 1 ? " is" : "s are"));
    }
    if (o_.bitmaps) TRY(CheckBitmaps(*disks[0], nullptr, o_.skip_broken_bitmaps));
    return disks.size() == 1 ? std::move(disks[0]) : TRY(ConcatLayer::Join(std::move(disks)));
  }

  Result<std::unique_ptr<NewImage>> MakeImage(const std::string& path, bool replace) {
    NewImageOptions create;
    create.format = o_.target_format;
    create.create.size = RoundUp(source_ ? source_->info().size : 0, o_.size_multiple);
    create.create.options = o_.target_options;
    create.create.secret = o_.target_secret ? &*o_.target_secret : nullptr;
    create.create.reproducible = o_.reproducible;
    create.direct = o_.target_direct;
    create.replace = replace;
    create.recorded_name = o_.target;
    if (!o_.parent.empty())
      create.create.parent = Reference{Reference::kParent, o_.parent, o_.parent_format};
    std::vector<std::string> warnings;
    auto image = TRY(NewImage::Create(path, create, o_.source.MakeGate(), &warnings));
    for (const std::string& warning : warnings) console_.Warn(warning);
    return image;
  }

  // The output appears under its name when everything is in it.
  Result<> IntoNew(const std::string& path) {
    auto image = TRY(MakeImage(path, o_.force));
    if (from_stdin() && !CanGrow(image->disk())) {
      image.reset();
      TRY(SpoolStdin());
      return IntoNew(path);
    }
    Disk& disk = image->disk();
    if (o_.target == "-") TRY(CheckAlone(disk.info()));
    // An overlay shows its parent where nothing is written: zeros must be
    // written there as well.
    o_.copy.target_is_zero = disk.depth() == 1 && image->starts_zero();
    TRY(Fill(disk));
    TRY(Verify(disk));
    TRY(PassBitmaps(disk));
    return image->Commit();
  }

  // Streams have one size, known when they begin; and in several files nobody grows past the last.
  static bool CanGrow(Disk& disk) {
    const Info& info = disk.info();
    auto data_file = [](const Reference& each) { return each.role == Reference::kData; };
    return disk.resizer() && !info.only_packed && std::ranges::none_of(info.references, data_file);
  }

  // The raw stream becomes a file, and that the source.
  Result<> SpoolStdin() {
    o_.sources[0] = TRY(SpoolToFile(STDIN_FILENO));
    o_.source.format = "raw";
    stdin_is_raw_ = false;
    source_ = TRY(OpenSources());
    return {};
  }

  // The same under a hidden name, in steps that are made durable and entered in a journal: the next
  // attempt begins with the step that was interrupted.
  Result<> IntoPartial(const std::string& path) {
    const OldOutput old = TRY(OldOutput::Hold(path, o_.force));
    const PartialOutput files = PartialOutput::For(old.path());
    const Journal journal(files, TRY(DescribeWork()));
    auto done = TRY(journal.Load());
    std::error_code error;
    if (!std::filesystem::exists(files.image, error)) done.reset();
    if (!done) {
      TRY(CheckResumable(TRY(MakeImage(files.image, /*replace=*/true))));
      done = 0;
      TRY(journal.Save(*done));
    } else {
      if (!o_.progress.quiet) console_.Err(fmt::format("going on at byte {}\n", *done));
      TRY(GiveBackLeaks(files.image));
    }
    {
      auto disk = TRY(OpenPartial(files.image));
      o_.copy.target_is_zero = disk->depth() == 1;
      TRY(CheckCompress(*disk));
      TRY(CopySteps(*disk, *done, journal));
      TRY(Verify(*disk));
    }
    TRY(old.GiveWay(files));
    journal.Remove();
    return {};
  }

  static Result<> CheckResumable(std::unique_ptr<NewImage> image) {
    const Info& info = image->disk().info();
    const bool alone = std::ranges::none_of(
        info.references, [](const Reference& each) { return each.role == Reference::kData; });
    if (!alone || info.only_packed) {
      return Fail(Code::kUnsupported, "--resume: this kind of {} is {}", info.format,
                  alone ? "written in one go" : "more than one file");
    }
    return image->Commit();
  }

  Result<std::unique_ptr<Disk>> OpenPartial(const std::string& path) {
    DiskOptions options{.format = o_.target_format,
                        .file = {.writable = true, .direct = o_.target_direct},
                        .secret = o_.target_secret ? &*o_.target_secret : nullptr};
    GatePolicy anywhere;  // the user named the parent when the image was made
    anywhere.allow_external = !o_.parent.empty();
    const Gate gate(anywhere);
    return Disk::Open(path, options, gate, nullptr);
  }

  // What the interrupted step took and did not come to name.
  Result<> GiveBackLeaks(const std::string& path) {
    const Gate gate{GatePolicy{}};
    const DiskOptions options{.format = o_.target_format, .file = {.writable = true}};
    TopImage image = TRY(OpenTopImage(path, options, gate, nullptr));
    if (!image.format->check) return {};
    const OpenOptions open{.writable = true, .opener = image.opener.get()};
    const CheckReport found =
        TRY(image.format->check(*image.store, open, {.repair = CheckOptions::kLeaks}));
    if (found.corruptions + found.errors == 0) return {};
    return Fail(Code::kCorrupt, "'{}' is damaged: remove it to begin again", Printable(path, 4096));
  }

  Result<> CopySteps(Disk& disk, uint64_t done, const Journal& journal) {
    using Clock = std::chrono::steady_clock;
    constexpr auto kStep = std::chrono::seconds(1);
    const uint64_t size = source_->info().size;
    progress_.total = size;
    progress_.done = done;
    o_.copy.skip_parent = SharesParentWith(disk);
    ProgressDisplay display(console_, progress_, o_.progress);
    for (uint64_t step = 64 * kMiB; done < size;) {
      const Range range{done, std::min(step, size - done)};
      const auto start = Clock::now();
      TRY(Copy(*source_, disk, range, o_.copy));
      TRY(disk.Flush());
      done = range.end();
      TRY(journal.Save(done));
      step = Clock::now() - start < kStep ? step * 2 : std::max(step / 2, 64 * kMiB);
    }
    return {};
  }

  // Everything on which the output depends.
  Result<std::string> DescribeWork() const {
    std::string work;
    for (const std::string& name : o_.sources)
      work += fmt::format("of {}\n", Printable(name, 4096));
    for (const ImageFile& file : source_files_) {
      work += TRY(DescribeSource(file.path, o_.verify)) + fmt::format("format {}\n", file.format);
    }
    const DiskOptions view = TRY(o_.source.ToDiskOptions(false));
    for (const auto& [name, value] : view.options) {
      work += fmt::format("source option {}={}\n", Printable(name), Printable(value, 4096));
    }
    work += fmt::format("bytes of the source {}\n", source_->info().size);
    work += fmt::format("snapshot '{}' format {} compress {} level {} sparse {} multiple {}\n",
                        Printable(o_.source.snapshot), o_.target_format, o_.copy.compress,
                        o_.copy.level, o_.copy.sparse, o_.size_multiple);
    for (const auto& [name, value] : o_.target_options) {
      work += fmt::format("option {}={}\n", Printable(name), Printable(value));
    }
    if (!o_.parent.empty()) {
      work += fmt::format("parent '{}' {}\n", Printable(o_.parent, 4096), o_.parent_format);
    }
    return work;
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
    TRY(Verify(*disk));
    return PassBitmaps(*disk);
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
                 !o_.verify && !o_.bitmaps && o_.parent.empty() && !o_.target_secret &&
                 !options.contains("size") && !options.contains("backing_file");
    if (!format->stream || !plain) return nullptr;
    CreateOptions create{.size = source_->info().size, .options = o_.target_options};
    create.reproducible = o_.reproducible;
    auto image = format->stream(create);
    if (!image && image.error().code() == Code::kUnsupported) return nullptr;
    return image;
  }

  Result<> CheckCompress(const Disk& disk) const {
    if (!o_.copy.compress || disk.info().compressed_units) return {};
    return Fail(Code::kUnsupported, "{} images cannot hold compressed clusters{}",
                disk.info().format, disk.info().encrypted ? " when they are encrypted" : "");
  }

  Result<> Fill(Disk& disk) {
    TRY(CheckCompress(disk));
    if (o_.bitmaps) TRY(CheckBitmaps(*source_, &disk, o_.skip_broken_bitmaps));
    {
      ProgressDisplay display(console_, progress_, o_.progress);
      if (from_stdin()) {
        TRY_AS("standard input", ImportRaw(STDIN_FILENO, disk, o_.copy));
        TRY(RoundSize(disk));
      } else {
        TRY(CopySource(disk));
      }
    }
    return disk.Flush();
  }

  Result<> CopySource(Disk& disk) {
    const Range all{0, source_->info().size};
    if (o_.with_snapshots) {
      return CopyWithSnapshots(o_.sources[0], o_.source, disk, o_.copy, console_);
    }
    if (o_.since.empty()) {
      o_.copy.skip_parent = SharesParentWith(disk);
      return Copy(*source_, disk, all, o_.copy);
    }
    TRY(CheckSince(*source_, o_.since));
    const uint64_t unit = std::max<uint64_t>(disk.info().unit, 4096);
    auto dirty = TRY(DirtyView::Make(*source_, o_.since, unit));
    o_.copy.skip_parent = true;
    return Copy(*dirty, disk, all, o_.copy);
  }

  Result<> PassBitmaps(Disk& disk) {
    if (!o_.bitmaps) return {};
    return CopyBitmaps(*source_, disk, o_.skip_broken_bitmaps,
                       o_.progress.quiet ? nullptr : &console_);
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
           source_parent_ == ImageFile{disk.path(1), disk.layer(1).info().format};
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
  // One file may be read in several ways.
  struct ImageFile {
    std::string path, format;
    bool operator==(const ImageFile&) const = default;
  };
  ImageFile source_parent_;              // what the source's disk stands on
  std::vector<ImageFile> source_files_;  // with all parents
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
