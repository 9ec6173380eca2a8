#include "nbd/answer.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <chrono>

#include "base/check.h"
#include "base/math.h"
#include "io/engine/engine.h"
#include "io/store.h"
#include "nbd/file_bytes.h"

namespace platter::nbd {
namespace {

// A run of zeros shorter than this is sent as data: a chunk of its own costs about as much.
constexpr uint64_t kShortestHole = 4 * kKiB;
constexpr size_t kMostPieces = 64;        // of one READ; the rest is sent as data
constexpr size_t kMostRuns = 16 * 1024;   // of one BLOCK_STATUS and context
constexpr size_t kMostMaps = 4096;        // of one request: its time is bounded
constexpr uint64_t kMostCached = kGiB;    // by one CACHE
constexpr size_t kBatch = 8;              // extents of one Map
constexpr size_t kLeastLent = 32 * kKiB;  // bytes; to copy fewer costs less than more system calls

// Bytes of a WRITE_ZEROES that are zeroed first. What was zeroed this fast is followed by more.
constexpr uint64_t kZeroedFirst = 256 * kMiB;
constexpr auto kFast = std::chrono::milliseconds(50);

bool ReadsAsZero(const Extent& extent) { return extent.kind != Kind::kData; }

Range InLayer(const Export& from, Range range) {
  return {from.window.offset + range.offset, range.length};
}

// How a READ is cut into chunks.
struct Piece {
  Range range;  // of the export
  bool zero;
};
class Pieces {
 public:
  // Cuts the start of `rest` as `extents` say, and takes it from that.
  void Cut(const Request& request, std::span<const Extent> extents, Range& rest) {
    // A short run of zeros is data as well, unless it is all there is.
    const uint64_t shortest = std::min(kShortestHole, request.range.length);
    for (const Extent& extent : extents) {
      const Range range{rest.offset, extent.guest.length};
      if (!Add(range, ReadsAsZero(extent) && range.length >= shortest)) return;
      rest = Range::FromTo(range.end(), rest.end());
    }
  }

  // The rest is data, whatever it is.
  void AddData(Range rest) {
    if (rest.empty() || Add(rest, false)) return;
    pieces_.back().zero = false;
    pieces_.back().range.length += rest.length;
  }

  bool full() const { return count_ == pieces_.size(); }
  std::span<const Piece> all() const { return std::span(pieces_).first(count_); }

 private:
  bool Add(Range range, bool zero) {
    if (count_ > 0 && pieces_[count_ - 1].zero == zero) {
      pieces_[count_ - 1].range.length += range.length;
      return true;
    }
    if (full()) return false;
    pieces_[count_++] = {range, zero};
    return true;
  }

  std::array<Piece, kMostPieces> pieces_;
  size_t count_ = 0;
};

bool WantsPieces(const Request& request) {
  return request.style != Style::kSimple && !request.Has(kFlagDf);
}

Result<> PlanRead(const Export& from, const Request& request, Pieces& pieces) {
  std::array<Extent, kBatch> extents;
  Range rest = request.range;
  // Pins in the plans of this file are for the structure lock: a disk may be resized. Nothing of a
  // plan but kinds and lengths outlives them.
  const Pin pin = from.layer->Hold();
  while (WantsPieces(request) && !rest.empty() && !pieces.full()) {
    size_t count = TRY(from.layer->Map(InLayer(from, rest), extents));
    pieces.Cut(request, std::span(extents).first(count), rest);
  }
  pieces.AddData(rest);
  return {};
}

Result<> ReadPieces(const Export& from, const Request& request, std::span<const Piece> pieces,
                    Outbox& out) {
  for (const Piece& piece : pieces) {
    const bool last = &piece == &pieces.back();
    const auto size = static_cast<uint32_t>(piece.range.length);
    if (piece.zero) {
      AppendHole(out, request, piece.range.offset, size, last);
      continue;
    }
    Bytes into = AppendData(out, request, piece.range.offset, size, last);
    TRY(Read(*from.layer, from.window.offset + piece.range.offset, into));
  }
  return {};
}

// Appends data that goes from files to the socket; false if it is not such data.
bool AppendFileData(const Export& from, const Request& request, const Piece& piece, bool last,
                    Outbox& out) {
  if (!out.accepts_files() || piece.range.length < kLeastLent) return false;
  std::array<FileBytes, kBatch> files;
  const size_t count = TryFindFileBytes(*from.layer, InLayer(from, piece.range), files);
  if (count == 0) return false;
  StartData(out, request, piece.range.offset, static_cast<uint32_t>(piece.range.length), last);
  for (const FileBytes& bytes : std::span(files).first(count)) out.AppendFile(bytes);
  return true;
}

// As ReadPieces, from what is in memory; false if some of it is not.
bool TryReadPieces(const Export& from, const Request& request, std::span<const Piece> pieces,
                   Outbox& out) {
  for (const Piece& piece : pieces) {
    const bool last = &piece == &pieces.back();
    const auto size = static_cast<uint32_t>(piece.range.length);
    if (piece.zero) {
      AppendHole(out, request, piece.range.offset, size, last);
      continue;
    }
    if (AppendFileData(from, request, piece, last, out)) continue;
    Bytes into = AppendData(out, request, piece.range.offset, size, last);
    iovec one{into.data(), into.size()};
    if (TryRead(*from.layer, from.window.offset + piece.range.offset, std::span(&one, 1)) < size) {
      return false;
    }
  }
  return true;
}

bool TryAnswerRead(const Export& from, const Request& request, Outbox& out) {
  std::array<Extent, kBatch> extents;
  Pieces pieces;
  Range rest = request.range;
  if (WantsPieces(request)) {
    const Pin pin = from.layer->Hold();
    size_t count = from.layer->TryMap(InLayer(from, rest), extents);
    pieces.Cut(request, std::span(extents).first(count), rest);
    if (!rest.empty()) return false;
  }
  pieces.AddData(rest);
  const uint64_t before = out.size();
  if (TryReadPieces(from, request, pieces.all(), out)) return true;
  out.TakeBack(before);
  return false;
}

Result<> AnswerRead(const Export& from, const Request& request, Outbox& out) {
  Pieces pieces;
  TRY(PlanRead(from, request, pieces));
  return ReadPieces(from, request, pieces.all(), out);
}

// Whether zeros get there faster than by writing them: a format drops whole units, and a file
// punches holes. Where that is not known, they do not.
bool ZeroesFast(const Export& from, const Request& request) {
  if (from.layer->info().unit > 0) return !request.Has(kFlagNoHole);
  Pin pin = from.layer->Hold();
  Extent first;
  if (from.layer->TryMap(InLayer(from, request.range), std::span(&first, 1)) == 0) return false;
  return first.store != nullptr && first.store->caps().punch && !first.store->caps().block_device;
}

// Where zeros have to be written, a disk of them may take hours; so it is done in parts, between
// which it can be ended. They end where units do: none is larger than the first part.
Result<> AnswerWriteZeroes(const Export& from, const Request& request) {
  uint64_t most = kZeroedFirst;
  for (Range rest = InLayer(from, request.range); !rest.empty();) {
    if (request.aborted && request.aborted->load()) return Fail(Code::kIo, "the server is ending");
    const auto start = std::chrono::steady_clock::now();
    const uint64_t end = std::min(rest.end(), RoundDown(rest.offset + most, kZeroedFirst));
    TRY(Zero(*from.layer, Range::FromTo(rest.offset, end), !request.Has(kFlagNoHole)));
    rest = Range::FromTo(end, rest.end());
    const bool fast = std::chrono::steady_clock::now() - start < kFast;
    if (fast && most < from.size()) most *= 2;
  }
  return {};
}

// Loads tables, and tells the kernel which pages are going to be asked for.
Result<> AnswerCache(const Export& from, const Request& request) {
  std::array<Extent, kBatch> extents;
  Range rest{request.range.offset, std::min(request.range.length, kMostCached)};
  for (size_t maps = 0; !rest.empty() && maps < kMostMaps; ++maps) {
    Pin pin = from.layer->Hold();
    size_t count = TRY(from.layer->Map(InLayer(from, rest), extents));
    for (const Extent& extent : std::span(extents).first(count)) {
      rest = Range::FromTo(rest.offset + extent.guest.length, rest.end());
      if (extent.kind != Kind::kData || extent.store->fd() < 0) continue;
      posix_fadvise(extent.store->fd(),
                    static_cast<off_t>(extent.store->fd_offset() + extent.host.offset),
                    static_cast<off_t>(extent.host.length), POSIX_FADV_WILLNEED);
    }
  }
  return {};
}

uint64_t StatusOf(MetaContext::Kind kind, const Extent& extent) {
  if (kind == MetaContext::kDepth) return extent.kind == Kind::kHole ? 0 : extent.depth + 1u;
  switch (extent.kind) {
    case Kind::kData: return 0;
    // Zeros with space behind them can be written without more of it.
    case Kind::kZero: return extent.store != nullptr ? kStateZero : kStateHole | kStateZero;
    case Kind::kHole:
    case Kind::kParent: break;
  }
  return kStateHole | kStateZero;
}

// Runs of a BLOCK_STATUS, neighbours that are alike merged.
class Runs {
 public:
  explicit Runs(const Request& request) : most_(request.Has(kFlagReqOne) ? 1 : kMostRuns) {}

  // False if it has no room: the client asks again from there.
  bool Add(uint64_t length, uint64_t status) {
    if (length == 0) return true;
    if (!runs_.empty() && runs_.back().status == status) {
      runs_.back().length += length;
      return true;
    }
    if (runs_.size() == most_) return false;
    runs_.push_back({length, status});
    return true;
  }
  std::span<const Status> all() const { return runs_; }

 private:
  const size_t most_;
  std::vector<Status> runs_;
};

Result<> AddMarkedRuns(const Export& from, const Request& request, const VisitMarked& marked,
                       Runs& runs) {
  Range rest = InLayer(from, request.range);
  bool room = true;
  const uint64_t end = TRY(marked(rest, [&](Range there) {
    room = runs.Add(there.offset - rest.offset, 0) && runs.Add(there.length, kStateMarked);
    rest = Range::FromTo(there.end(), rest.end());
    return room;
  }));
  if (room) runs.Add(end - rest.offset, 0);
  return {};
}

Result<> AddMapRuns(const Export& from, const Request& request, MetaContext::Kind kind,
                    Runs& runs) {
  std::array<Extent, kBatch> extents;
  Range rest = request.range;
  const Pin pin = from.layer->Hold();
  for (size_t maps = 0; !rest.empty() && maps < kMostMaps; ++maps) {
    size_t count = TRY(from.layer->Map(InLayer(from, rest), extents));
    for (const Extent& extent : std::span(extents).first(count)) {
      if (!runs.Add(extent.guest.length, StatusOf(kind, extent))) return {};
      rest = Range::FromTo(rest.offset + extent.guest.length, rest.end());
    }
  }
  return {};
}

Result<> AnswerBlockStatus(const Export& from, const Request& request, Outbox& out) {
  for (uint32_t context : request.contexts) {
    const MetaContext& asked = from.contexts[context];
    Runs runs(request);
    if (asked.kind == MetaContext::kMarked) {
      TRY(AddMarkedRuns(from, request, asked.visit, runs));
    } else {
      TRY(AddMapRuns(from, request, asked.kind, runs));
    }
    AppendStatus(out, request, context, runs.all(), context == request.contexts.back());
  }
  return {};
}

Result<> AnswerChange(const Export& from, const Request& request) {
  switch (request.command) {
    case kCmdWrite:
      TRY(Write(*from.layer, from.window.offset + request.range.offset, request.payload));
      break;
    case kCmdTrim: TRY(Discard(*from.layer, InLayer(from, request.range))); break;
    case kCmdWriteZeroes: TRY(AnswerWriteZeroes(from, request)); break;
    case kCmdResize: TRY(from.resizable->Change(request.range.offset)); break;
    default: CHECK(request.command == kCmdFlush);
  }
  if (request.command == kCmdFlush || request.Has(kFlagFua)) TRY(from.layer->Flush());
  return {};
}

Result<> AnswerOrFail(const Export& from, const Request& request, Outbox& out) {
  const bool ranged = request.command != kCmdFlush && request.command != kCmdResize;
  if (ranged && request.range.empty()) {
    ReplyDone(out, request);
    return {};
  }
  switch (request.command) {
    case kCmdRead: return AnswerRead(from, request, out);
    case kCmdBlockStatus: return AnswerBlockStatus(from, request, out);
    case kCmdCache: TRY(AnswerCache(from, request)); break;
    default: TRY(AnswerChange(from, request));
  }
  ReplyDone(out, request);
  return {};
}

void Count(const Export& from, const Request& request) {
  Counters& counters = from.counters;
  constexpr auto kRelaxed = std::memory_order_relaxed;
  counters.requests[request.command].fetch_add(1, kRelaxed);
  if (request.command == kCmdRead) {
    counters.bytes_read.fetch_add(request.range.length, kRelaxed);
  } else if (request.command == kCmdWrite) {
    counters.bytes_written.fetch_add(request.range.length, kRelaxed);
  }
}

}  // namespace

bool TryAnswer(const Export& from, const Request& request, Outbox& out) {
  if (request.command != kCmdRead || request.range.empty()) return false;
  if (!TryAnswerRead(from, request, out)) return false;
  Count(from, request);
  return true;
}

void Answer(const Export& from, const Request& request, Outbox& out, const ErrorLog& log) {
  Count(from, request);
  if (request.command == kCmdWriteZeroes && request.Has(kFlagFastZero) && !request.range.empty() &&
      !ZeroesFast(from, request)) {
    ReplyError(out, request, kNotSupported, "zeros are not faster than data here");
    return;
  }
  const uint64_t before = out.size();
  Result<> answered = AnswerOrFail(from, request, out);
  if (answered) return;
  out.TakeBack(before);
  from.counters.errors.fetch_add(1, std::memory_order_relaxed);
  if (log) log(from, request, answered.error());
  ReplyError(out, request, ToErrorValue(answered.error()), CodeName(answered.error().code()));
}

uint64_t CostOf(const Request& request) {
  constexpr uint64_t kFixed = 512;
  switch (request.command) {
    case kCmdRead: return kFixed + request.range.length;
    case kCmdWrite: return kFixed + request.payload.size();
    case kCmdBlockStatus:
      return kFixed + kMostRuns * sizeof(StatusDescriptor64) * request.contexts.size();
    default: return kFixed;
  }
}

}  // namespace platter::nbd
