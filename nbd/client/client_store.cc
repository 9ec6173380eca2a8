#include "nbd/client/client_store.h"

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <thread>

#include "io/buffer.h"
#include "io/iov.h"

namespace platter::nbd {

namespace {

using std::chrono::steady_clock;

constexpr std::string_view kSchemes[] = {"nbd",       "nbds",      "nbd+unix",
                                         "nbds+unix", "nbd+vsock", "nbds+vsock"};

// Bytes of one request without data where lengths have 32 bits.
constexpr uint64_t kMostEffect = kGiB;
constexpr uint64_t kMostZeros = kMiB;  // bytes written at once where zeros have to be written
constexpr int kMostRounds = 20;        // of one request, each over a connection that was lost
constexpr std::chrono::milliseconds kPatienceForMore = std::chrono::seconds(2);
constexpr auto kBelieved = std::chrono::seconds(1);  // what a server said of runs

// Asks for the first block: an error is an answer, too.
bool Answers(ClientConnection& connection) {
  Buffer block(std::min<uint64_t>(connection.agreed().minimum, connection.agreed().size));
  const iovec one{block.data(), block.size()};
  Call call;
  call.range = {0, block.size()};
  call.into = {&one, 1};
  return connection.Perform(call);
}

std::string_view Doing(Command command) {
  switch (command) {
    case kCmdRead: return "read";
    case kCmdWrite: return "write";
    case kCmdFlush: return "flush";
    case kCmdWriteZeroes: return "zero";
    default: return "tell about";
  }
}

bool Changes(const Call& call) {
  return call.command == kCmdWrite || call.command == kCmdWriteZeroes;
}

Unflushed::Entry CopyOf(const Call& call) {
  if (call.command == kCmdWriteZeroes) {
    return {.range = call.range, .zero = true, .may_unmap = (call.flags & kFlagNoHole) == 0};
  }
  Unflushed::Entry entry{.range = call.range, .data = Buffer(call.range.length)};
  IovGather(call.from, 0, entry.data.bytes());
  return entry;
}

}  // namespace

Result<std::unique_ptr<ClientStore>> ClientStore::Open(Uri uri, const ClientOptions& options) {
  auto opened = TRY_AS(fmt::format("'{}'", uri.name), OpenExport(uri, options.patience));
  if (options.writable && opened.agreed.has(kReadOnly)) {
    return Fail(Code::kReadOnly, "'{}': the server exports it for reading only", uri.name);
  }
  auto connection = std::make_shared<ClientConnection>(std::move(opened));
  return std::unique_ptr<ClientStore>(
      new ClientStore(std::move(uri), options, std::move(connection)));
}

ClientStore::ClientStore(Uri uri, const ClientOptions& options, ConnectionPtr first)
    : uri_(std::move(uri)),
      options_(options),
      agreed_(first->agreed()),
      keeps_(options.writable && options.reconnect_seconds > 0 && agreed_.has(kSendFlush)),
      open_{std::move(first)} {}

ClientStore::~ClientStore() = default;

Store::Caps ClientStore::caps() const {
  return Caps{.align = agreed_.minimum,
              .preferred = agreed_.preferred,
              .punch = agreed_.has(kSendWriteZeroes),
              .block_device = true};
}

size_t ClientStore::connections() const {
  std::lock_guard lock(session_);
  return open_.size();
}

// --- Requests, and what becomes of them ---------------------------------------------------------

Result<ClientStore::Picked> ClientStore::Pick() {
  std::lock_guard lock(session_);
  if (lost_) return std::unexpected(lost_->Clone());
  return Picked{open_[next_++ % open_.size()], era_};
}

Result<> ClientStore::Perform(Call& call) {
  for (int round = 0; round < kMostRounds; ++round) {
    const Picked picked = TRY(Pick());
    ConnectMore(picked);
    call.Reset();
    bool answered = picked.connection->Perform(call);
    if (answered && call.error == kShutdown && options_.reconnect_seconds > 0) {
      picked.connection->Close(Error(Code::kIo, 0, "the server is shutting down"));
      answered = false;
    }
    if (!answered) {
      TRY(Recover(picked.era, *picked.connection));
      continue;
    }
    TRY(Answer(call));
    if (!keeps_ || !Changes(call) || unflushed_.Keep(picked.era, CopyOf(call))) return {};
  }
  return Fail(Code::kIo, "'{}': the connection is lost again and again", name());
}

Result<> ClientStore::Answer(const Call& call) const {
  if (call.error == 0) return {};
  const int error = call.error < 4096 ? static_cast<int>(call.error) : EIO;
  return FailErrno(error, "'{}': the server cannot {} {} bytes at {}{}{}", name(),
                   Doing(call.command), call.range.length, call.range.offset,
                   call.message.empty() ? "" : ": ", call.message);
}

// Another connection, if the server allows it and there is use for one. A server may say that it
// allows it and yet let us wait: that is tried once.
void ClientStore::ConnectMore(const Picked& picked) {
  if (!agreed_.has(kCanMultiConn) || picked.connection->in_flight() < 2) return;
  {
    std::lock_guard lock(session_);
    if (no_more_ || open_.size() >= options_.connections) return;
  }
  std::unique_lock recover(recover_, std::try_to_lock);
  if (!recover) return;
  auto opened = OpenExport(uri_, kPatienceForMore);
  // A server that was started again knows nothing of what the one before it had not flushed, and
  // may be there before the loss of that one is noticed. If it still answers, it is the same one.
  if (!Answers(*picked.connection)) return;
  std::lock_guard lock(session_);
  const bool fits = opened && opened->agreed.size == agreed_.size &&
                    opened->agreed.flags == agreed_.flags &&
                    opened->agreed.extended == agreed_.extended &&
                    opened->agreed.minimum <= agreed_.minimum && era_ == picked.era;
  if (fits) {
    open_.push_back(std::make_shared<ClientConnection>(std::move(*opened)));
  } else {
    no_more_ = true;
  }
}

Result<> ClientStore::Recover(uint64_t era, ClientConnection& lost) {
  std::lock_guard recover(recover_);
  const auto problem = lost.problem();
  Error why = problem ? problem->Clone() : Error(Code::kIo, 0, "it was closed");
  {
    std::lock_guard lock(session_);
    if (lost_) return std::unexpected(lost_->Clone());
    if (era_ != era) return {};  // another thread was here
    // What went out on the others is sent again as well: a server that hangs up on one connection
    // may have died.
    for (const ConnectionPtr& connection : open_) connection->Close(why.Clone());
  }
  auto found = Reconnect(era + 1, why);
  std::lock_guard lock(session_);
  if (!found) {
    lost_ = std::move(found.error());
    return std::unexpected(lost_->Clone());
  }
  open_ = {std::move(*found)};
  era_ = era + 1;
  no_more_ = false;
  return {};
}

Result<ClientStore::ConnectionPtr> ClientStore::Reconnect(uint64_t era, const Error& why) {
  const auto window = std::chrono::duration_cast<steady_clock::duration>(
      std::chrono::duration<double>(options_.reconnect_seconds));
  const auto deadline = steady_clock::now() + window;
  auto pause = std::chrono::milliseconds(20);
  Error last = why.Clone();
  while (options_.reconnect_seconds > 0) {
    auto connection = TryReconnect(era);
    if (connection) return connection;
    last = std::move(connection.error());
    if (steady_clock::now() + pause > deadline) break;
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(1000));
  }
  if (options_.reconnect_seconds <= 0) {
    return Fail(Code::kIo, "'{}': the connection was lost: {}", name(), why.text());
  }
  return Fail(Code::kIo, "'{}': the connection was lost ({}), and not found again in {} s: {}",
              name(), why.text(), options_.reconnect_seconds, last.text());
}

// Connects, and brings the server to where the lost one has been.
Result<ClientStore::ConnectionPtr> ClientStore::TryReconnect(uint64_t era) {
  auto opened = TRY(OpenExport(uri_, options_.patience));
  const Agreed& now = opened.agreed;
  constexpr uint16_t kNeeded = kSendFlush | kSendWriteZeroes;
  const bool same = now.size == agreed_.size && now.minimum <= agreed_.minimum &&
                    now.most_payload >= agreed_.most_payload &&
                    (now.extended || !agreed_.extended) &&
                    (now.flags & agreed_.flags & kNeeded) == (agreed_.flags & kNeeded) &&
                    !(options_.writable && now.has(kReadOnly));
  if (!same) return Fail(Code::kRefused, "the server has another export there now");
  auto connection = std::make_shared<ClientConnection>(std::move(opened));
  auto send = [&](const Unflushed::Entry& entry) -> Result<> {
    Call call;
    call.command = entry.zero ? kCmdWriteZeroes : kCmdWrite;
    call.flags = entry.zero && !entry.may_unmap ? kFlagNoHole : 0;
    call.range = entry.range;
    const iovec data{const_cast<std::byte*>(entry.data.bytes().data()), entry.data.size()};
    if (!entry.zero) call.from = {&data, 1};
    if (connection->Perform(call)) return Answer(call);
    return std::unexpected(std::move(*connection->problem()));
  };
  TRY(unflushed_.Replay(era, send));
  return connection;
}

// --- Reading ------------------------------------------------------------------------------------

Result<> ClientStore::Read(uint64_t at, std::span<const iovec> into) {
  const Range range{at, IovLength(into)};
  if (!FitsIn(at, range.length, agreed_.size)) {
    return Fail(Code::kCorrupt,
                "'{}': {} bytes at {:#x} reach past the end of the export (size {:#x})", name(),
                range.length, at, agreed_.size);
  }
  if (range.empty()) return {};
  const Range blocks = range.Outward(agreed_.minimum).Intersect({0, agreed_.size});
  if (blocks == range) return Transfer(kCmdRead, at, into);
  Buffer buffer(blocks.length);
  const iovec one{buffer.data(), buffer.size()};
  TRY(Transfer(kCmdRead, blocks.offset, {&one, 1}));
  IovScatter(buffer.bytes().subspan(at - blocks.offset, range.length), into, 0);
  return {};
}

Result<> ClientStore::Transfer(Command command, uint64_t at, std::span<const iovec> data) {
  const uint64_t length = IovLength(data);
  for (uint64_t done = 0; done < length;) {
    const uint64_t part = std::min<uint64_t>(length - done, agreed_.most_payload);
    std::vector<iovec> slices;
    IovSlice(data, done, part, slices);
    Call call;
    call.command = command;
    call.range = {at + done, part};
    (command == kCmdRead ? call.into : call.from) = slices;
    TRY(Perform(call));
    done += part;
  }
  return {};
}

Result<Store::Run> ClientStore::FindRun(uint64_t at) {
  if (at >= agreed_.size) {
    return Fail(Code::kOutOfRange, "'{}': {:#x} is past the end of the export (size {:#x})", name(),
                at, agreed_.size);
  }
  if (!agreed_.allocation) return Run{.length = agreed_.size - at, .data = true};
  auto find = [&](const KnownRuns& known) -> std::optional<Run> {
    if (at < known.begin || known.runs.empty() || at >= known.runs.back().first) return {};
    auto after = [](uint64_t place, const auto& run) { return place < run.first; };
    auto run = std::upper_bound(known.runs.begin(), known.runs.end(), at, after);
    return Run{.length = run->first - at, .data = run->second};
  };
  {
    std::lock_guard lock(runs_);
    auto run = find(known_);
    if (run && steady_clock::now() < known_.until) return *run;
  }
  return *find(TRY(AskRuns(at)));
}

// At least one run, which holds `at`.
Result<ClientStore::KnownRuns> ClientStore::AskRuns(uint64_t at) {
  uint64_t changes = 0;
  {
    std::lock_guard lock(runs_);
    changes = changes_;
  }
  const uint64_t begin = RoundDown(at, agreed_.minimum), left = agreed_.size - begin;
  std::vector<StatusRun> told;
  Call call;
  call.command = kCmdBlockStatus;
  call.range = {begin, agreed_.extended ? left : std::min(left, kMostEffect)};
  call.runs = &told;
  auto asked = Perform(call);
  // A server that cannot tell here: it is data, and what is wrong with it reading will show.
  if (!asked && call.error == 0) return std::unexpected(std::move(asked.error()));
  uint64_t told_length = 0;
  for (const StatusRun& run : told) told_length += run.length;
  if (!asked || told_length <= at - begin) told = {{call.range.length, 0}};

  KnownRuns known{.begin = begin, .runs = {}, .until = steady_clock::now() + kBelieved};
  uint64_t end = begin;
  for (const StatusRun& run : told) {
    // A hole that does not read as zeros holds who knows what.
    const bool data = (run.status & kStateZero) == 0;
    end += run.length;
    if (!known.runs.empty() && known.runs.back().second == data) {
      known.runs.back().first = end;
    } else {
      known.runs.emplace_back(end, data);
    }
  }
  std::lock_guard lock(runs_);
  if (changes == changes_) known_ = known;
  return known;
}

void ClientStore::ForgetRuns() {
  std::lock_guard lock(runs_);
  ++changes_;
  known_ = {};
}

// --- Writing ------------------------------------------------------------------------------------

Result<> ClientStore::CheckChange(Range range) const {
  if (!options_.writable) return Fail(Code::kReadOnly, "'{}' is open for reading only", name());
  if (FitsIn(range.offset, range.length, agreed_.size)) return {};
  return Fail(Code::kNoSpace,
              "'{}': {} bytes at {:#x} reach past the end of the export (size {:#x})", name(),
              range.length, range.offset, agreed_.size);
}

// Where parts of blocks are read, changed and written back, nobody else may change them meanwhile.
RangeLock::Guard ClientStore::LockBlocks(Range range) {
  if (agreed_.minimum == 1) return {};
  return blocks_.Lock(range.Outward(agreed_.minimum));
}

Result<> ClientStore::Write(uint64_t at, std::span<const iovec> from) {
  const Range range{at, IovLength(from)};
  TRY(CheckChange(range));
  if (range.empty()) return {};
  auto guard = LockBlocks(range);
  ForgetRuns();
  auto written = WriteAny(at, from);
  ForgetRuns();
  return written;
}

Result<> ClientStore::WriteAny(uint64_t at, std::span<const iovec> from) {
  const uint64_t unit = agreed_.minimum, length = IovLength(from), end = at + length;
  for (uint64_t place = at; place < end;) {
    uint64_t stop = std::min(RoundDown(place, unit) + unit, end);
    const bool whole = IsAligned(place, unit) && end - place >= unit;
    if (whole) stop = RoundDown(end, unit);
    std::vector<iovec> slices;
    IovSlice(from, place - at, stop - place, slices);
    TRY(whole ? WriteBlocks(place, slices) : PatchBlock(Range::FromTo(place, stop), slices));
    place = stop;
  }
  return {};
}

Result<> ClientStore::WriteBlocks(uint64_t at, std::span<const iovec> from) {
  TRY(Transfer(kCmdWrite, at, from));
  if (unflushed_.bytes() > kMostUnflushed) TRY(Sync());
  return {};
}

// `part` of one block.
Result<> ClientStore::PatchBlock(Range part, std::span<const iovec> from) {
  const Range block = part.Outward(agreed_.minimum).Intersect({0, agreed_.size});
  Buffer buffer(block.length);
  const iovec one{buffer.data(), buffer.size()};
  TRY(Transfer(kCmdRead, block.offset, {&one, 1}));
  IovGather(from, 0, buffer.bytes().subspan(part.offset - block.offset, part.length));
  return WriteBlocks(block.offset, {&one, 1});
}

Result<> ClientStore::Zero(Range range, bool may_unmap) {
  TRY(CheckChange(range));
  if (range.empty()) return {};
  auto guard = LockBlocks(range);
  ForgetRuns();
  const Range blocks = range.Inward(agreed_.minimum);
  Result<> zeroed;
  if (!agreed_.has(kSendWriteZeroes) || blocks.empty()) {
    zeroed = WriteZeros(range);
  } else {
    zeroed = WriteZeros(Range::FromTo(range.offset, blocks.offset));
    if (zeroed) zeroed = ZeroBlocks(blocks, may_unmap);
    if (zeroed) zeroed = WriteZeros(Range::FromTo(blocks.end(), range.end()));
  }
  ForgetRuns();
  return zeroed;
}

Result<> ClientStore::ZeroBlocks(Range blocks, bool may_unmap) {
  const uint64_t most = agreed_.extended ? blocks.length : kMostEffect;
  while (!blocks.empty()) {
    Call call;
    call.command = kCmdWriteZeroes;
    call.flags = may_unmap ? 0 : kFlagNoHole;
    call.range = {blocks.offset, std::min(blocks.length, most)};
    auto zeroed = Perform(call);
    if (!zeroed && (call.error == kNotSupported || call.error == kInvalid)) {
      zeroed = WriteZeros(call.range);
    }
    TRY(std::move(zeroed));
    blocks = Range::FromTo(call.range.end(), blocks.end());
  }
  return {};
}

Result<> ClientStore::WriteZeros(Range range) {
  if (range.empty()) return {};
  Buffer zeros(std::min(range.length, kMostZeros));
  std::ranges::fill(zeros.bytes(), std::byte{0});
  while (!range.empty()) {
    const iovec one{zeros.data(), std::min<size_t>(range.length, zeros.size())};
    TRY(WriteAny(range.offset, {&one, 1}));
    range = Range::FromTo(range.offset + one.iov_len, range.end());
  }
  return {};
}

Result<> ClientStore::Sync() {
  if (!options_.writable || !agreed_.has(kSendFlush)) return {};
  const uint64_t mark = unflushed_.mark();
  Call call;
  call.command = kCmdFlush;
  TRY(Perform(call));
  unflushed_.Drop(mark);
  return {};
}

Result<> ClientStore::Resize(uint64_t size) {
  if (size == agreed_.size) return {};
  return Fail(Code::kUnsupported, "'{}': the size of an export is fixed ({} bytes)", name(),
              agreed_.size);
}

Result<> ClientStore::Allocate(Range) {
  return Fail(Code::kUnsupported, "'{}': a server cannot be asked to allocate space", name());
}

// --- The opener ---------------------------------------------------------------------------------

std::span<const std::string_view> ClientOpener::schemes() const { return kSchemes; }

Result<std::unique_ptr<Store>> ClientOpener::Open(const std::string& url, bool writable) const {
  ClientOptions options = options_;
  options.writable = writable;
  return TRY(ClientStore::Open(TRY(ParseUri(url)), options));
}

}  // namespace platter::nbd
