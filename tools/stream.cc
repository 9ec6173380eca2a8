#include "tools/stream.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "formats/unit_set.h"
#include "io/buffer.h"
#include "io/fd.h"
#include "io/read_only_store.h"
#include "io/temp_file.h"
#include "tools/interrupt.h"
#include "tools/scan.h"

namespace platter {
namespace {

// After a call was interrupted: goes on, unless the user wants us to stop.
Result<> GoOn() {
  if (!Interrupted()) return {};
  return Fail(Code::kRefused, "cancelled");
}

Result<> WriteAll(int fd, ConstBytes bytes) {
  while (!bytes.empty()) {
    ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) {
      TRY(GoOn());
      continue;
    }
    if (written < 0) return FailErrno(errno, "writing to the output stream");
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return {};
}

// Fills `into` unless the stream ends; returns how much came.
Result<size_t> ReadUpTo(int fd, Bytes into) {
  size_t filled = 0;
  while (filled < into.size()) {
    ssize_t count = read(fd, into.data() + filled, into.size() - filled);
    if (count < 0 && errno == EINTR) {
      TRY(GoOn());
      continue;
    }
    if (count < 0) return FailErrno(errno, "reading the input stream");
    if (count == 0) break;
    filled += static_cast<size_t>(count);
  }
  return filled;
}

// The bytes of a buffer as a Store, for reading.
class BufferStore final : public ReadOnlyStore {
 public:
  explicit BufferStore(ConstBytes bytes) : bytes_(bytes) {}
  Caps caps() const override { return {}; }
  const std::string& name() const override { return name_; }
  Result<uint64_t> Size() const override { return bytes_.size(); }
  using Store::Read;
  Result<> Read(uint64_t at, std::span<const iovec> into) override {
    for (const iovec& part : into) {
      if (!FitsIn(at, part.iov_len, bytes_.size()))
        return Fail(Code::kOutOfRange, "read past the input window");
      std::memcpy(part.iov_base, bytes_.data() + at, part.iov_len);
      at += part.iov_len;
    }
    return {};
  }
  Result<Run> FindRun(uint64_t at) override { return Run{bytes_.size() - at, true}; }

 private:
  std::unexpected<Error> Refused() const override {
    return Fail(Code::kReadOnly, "an input stream is for reading");
  }
  const ConstBytes bytes_;
  const std::string name_ = "input stream";
};

// A disk that is known only in one window: what has just come through the pipe.
class WindowLayer : public Layer {
 public:
  WindowLayer(uint64_t offset, ConstBytes bytes) : offset_(offset), store_(bytes) {
    info_.format = "raw";
    info_.size = offset + bytes.size();
  }
  const Info& info() const override { return info_; }
  Pin Hold() override { return {}; }
  Result<size_t> Map(Range want, std::span<Extent> out) override {
    if (want.empty() || want.offset < offset_ || want.end() > info_.size) {
      return Fail(Code::kOutOfRange, "the input stream has gone past byte {}", want.offset);
    }
    out[0] = {.guest = want,
              .kind = Kind::kData,
              .store = &store_,
              .host = {want.offset - offset_, want.length},
              .codec = {}};
    return 1;
  }
  Result<std::unique_ptr<Reservation>> Reserve(Range) override {
    return Fail(Code::kReadOnly, "an input stream is for reading");
  }
  Result<Range> Discard(Range, Kind) override {
    return Fail(Code::kReadOnly, "an input stream is for reading");
  }
  Result<> Flush() override { return {}; }

 private:
  const uint64_t offset_;
  BufferStore store_;
  Info info_;
};

}  // namespace

Result<> ExportRaw(Layer& from, int fd, unsigned threads, Progress& progress) {
  static const std::vector<std::byte> kZeros(1 << 20);
  ScanOptions options{.threads = threads, .progress = &progress};
  return Scan(from, options, [&](const ScanChunk& chunk) -> Result<ScanFinish> {
    uint64_t length = chunk.range.length;
    if (chunk.zero) {
      return ScanFinish([&progress, fd, length]() -> Result<> {
        for (uint64_t left = length; left > 0;) {
          if (progress.cancel) return Fail(Code::kRefused, "cancelled");
          uint64_t step = std::min<uint64_t>(left, kZeros.size());
          TRY(WriteAll(fd, std::span(kZeros).first(step)));
          left -= step;
        }
        return {};
      });
    }
    auto buffer = std::make_shared<Buffer>(length);
    TRY(Read(from, chunk.range.offset, buffer->bytes()));
    return ScanFinish([fd, buffer] { return WriteAll(fd, buffer->bytes()); });
  });
}

namespace {

// The units of the disk that are not zeros.
Result<UnitSet> FindUsed(Layer& from, const ScanOptions& options) {
  UnitSet used;
  TRY(Scan(from, options, [&](const ScanChunk& chunk) -> Result<ScanFinish> {
    if (chunk.zero) return ScanFinish();
    Buffer buffer(chunk.range.length);
    TRY(Read(from, chunk.range.offset, buffer.bytes()));
    std::vector<uint64_t> found;
    for (uint64_t at = 0; at < chunk.range.length; at += options.align) {
      uint64_t length = std::min(options.align, chunk.range.length - at);
      if (IsZero(std::as_const(buffer).bytes().subspan(at, length))) continue;
      found.push_back((chunk.range.offset + at) / options.align);
    }
    return ScanFinish([&used, found = std::move(found)]() -> Result<> {
      for (uint64_t unit : found) used.Add({unit, 1});
      return {};
    });
  }));
  return used;
}

// One chunk's units that are in the set, as they follow one another in the image.
Result<ScanFinish> PutUnits(Layer& from, const ScanChunk& chunk, const UnitSet& used, uint64_t unit,
                            int fd) {
  const Range units = chunk.range.Outward(unit);
  auto buffer = std::make_shared<Buffer>(units.length);
  size_t filled = 0;
  for (Range rest{units.offset / unit, units.length / unit}; !rest.empty();) {
    Range run = used.Next(rest.offset).Intersect(rest);
    if (run.empty()) break;
    Range guest = Range{run.offset * unit, run.length * unit};
    Bytes into = buffer->bytes().subspan(filled, guest.length);
    guest = guest.Intersect({0, from.info().size});
    TRY(Read(from, guest.offset, into.first(guest.length)));
    std::ranges::fill(into.subspan(guest.length), std::byte{0});
    filled += into.size();
    rest = Range::FromTo(run.end(), rest.end());
  }
  return ScanFinish([fd, buffer, filled] { return WriteAll(fd, buffer->bytes().first(filled)); });
}

}  // namespace

Result<> ExportImage(Layer& from, ImageStream& image, int fd, bool zeros_too, unsigned threads,
                     Progress& progress) {
  const uint64_t unit = image.unit(), size = from.info().size;
  ScanOptions options{.threads = threads,
                      .align = unit,
                      .chunk = RoundUp(kMiB, unit),
                      .zeros_are_data = zeros_too,
                      .progress = &progress};
  UnitSet used;
  if (zeros_too) {
    used.Add({0, DivideUp(size, unit)});
  } else {
    used = TRY(FindUsed(from, options));
  }
  TRY(image.Head(used, [fd](ConstBytes bytes) { return WriteAll(fd, bytes); }));
  return Scan(from, options, [&](const ScanChunk& chunk) -> Result<ScanFinish> {
    // What is zeros by the map has not changed since it was looked at.
    if (chunk.zero) return ScanFinish();
    return PutUnits(from, chunk, used, unit, fd);
  });
}

Result<uint64_t> ImportRaw(int fd, Layer& to, const CopyOptions& options) {
  constexpr size_t kWindow = 32 << 20;
  Resizer* resizer = to.resizer();
  if (!resizer)
    return Fail(Code::kUnsupported, "{} images cannot grow with an input stream", to.info().format);
  Buffer window(kWindow);
  uint64_t at = 0;
  while (true) {
    size_t count = TRY(ReadUpTo(fd, window.bytes()));
    if (count == 0) break;
    if (at + count > to.info().size) {
      // Doubling keeps the number of resizes small; the surplus is cut at the
      // end.
      TRY(resizer->Resize(std::max(to.info().size * 2, RoundUp(at + count, kWindow)),
                          Preallocation::kOff));
    }
    WindowLayer source(at, window.bytes().first(count));
    TRY(Copy(source, to, {at, count}, options));
    at += count;
  }
  TRY(resizer->Resize(at, Preallocation::kOff));
  return at;
}

Result<> MoveFileTo(const std::string& path, int fd) {
  Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return FailErrno(errno, "open '{}'", Printable(path, 4096));
  unlink(path.c_str());
  Buffer buffer(1 << 20);
  while (true) {
    size_t count = TRY(ReadUpTo(file.get(), buffer.bytes()));
    if (count == 0) return {};
    TRY(WriteAll(fd, std::as_const(buffer).bytes().first(count)));
  }
}

Result<std::string> SpoolToFile(int fd) {
  static Fd spool;  // open as long as the path is used, which is to the end of the program
  spool = TRY(OpenTempFile());
  Buffer buffer(1 << 20);
  while (true) {
    size_t count = TRY(ReadUpTo(fd, buffer.bytes()));
    if (count == 0) return fmt::format("/proc/self/fd/{}", spool.get());
    TRY_AS("the input stream, put aside (TMPDIR says where)",
           WriteAll(spool.get(), std::as_const(buffer).bytes().first(count)));
  }
}

}  // namespace platter
