#include "nbd/session.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/math.h"

namespace platter::nbd {
namespace {

// Holds a good number of small requests, so that one receive brings many.
constexpr size_t kInput = 256 * kKiB;
// A payload up to this is used where it lies; a longer one is received where it is going to stay.
constexpr size_t kMostInPlace = 64 * kKiB;
// After a long payload another is likely: no more than its start should come by way of input_.
constexpr size_t kAfterLarge = 512;

uint16_t AllowedFlags(const Request& request) {
  switch (request.command) {
    case kCmdRead: return kFlagFua | (request.style == Style::kSimple ? 0 : kFlagDf);
    case kCmdWriteZeroes: return kFlagFua | kFlagNoHole | kFlagFastZero;
    case kCmdBlockStatus: return kFlagFua | kFlagReqOne;
    default: return kFlagFua;  // which clients are known to set on anything
  }
}

bool Changes(Command command) {
  return command == kCmdWrite || command == kCmdTrim || command == kCmdWriteZeroes ||
         command == kCmdResize;
}

}  // namespace

Session::Session(Exports& exports, const SessionOptions& options, Outbox& out)
    : exports_(exports), options_(options), out_(out), input_(kInput) {
  out_.Put(Greeting{kGreetingMagic, kOptionMagic, uint16_t{kFixedNewstyle | kNoZeroes}});
}

Bytes Session::Room() {
  if (payload_wanted_ > 0) {
    return request_.memory.bytes().subspan(payload_here_, payload_wanted_ - payload_here_);
  }
  if (begin_ == end_) {
    begin_ = end_ = 0;
  } else if (begin_ > 0 && input_.size() - end_ < kMostInPlace + sizeof(ExtendedRequest)) {
    std::memmove(input_.data(), input_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  Bytes room = input_.bytes().subspan(end_);
  return large_ ? room.first(std::min(room.size(), kAfterLarge)) : room;
}

void Session::Received(size_t size) {
  if (payload_wanted_ > 0) {
    payload_here_ += size;
  } else {
    end_ += size;
  }
}

Session::Event Session::End(std::string why) {
  phase_ = Phase::kEnded;
  failure_ = std::move(why);
  begin_ = end_ = 0;
  return Event::kEnd;
}

bool Session::SkipPending() {
  const size_t part = std::min<uint64_t>(skip_, end_ - begin_);
  begin_ += part;
  skip_ -= part;
  return skip_ == 0;
}

Session::Event Session::Next() {
  while (true) {
    if (skip_ > 0 && !SkipPending()) return Event::kMore;
    std::optional<Event> event;
    switch (phase_) {
      case Phase::kClientFlags: event = NextClientFlags(); break;
      case Phase::kOptions: event = NextOption(); break;
      case Phase::kTransmission: event = NextRequest(); break;
      case Phase::kStartingTls: return Event::kMore;
      case Phase::kEnded: return Event::kEnd;
    }
    if (event) return *event;
  }
}

std::optional<Session::Event> Session::NextRequest() {
  if (payload_wanted_ > 0) return TakePayload();
  uint64_t payload = 0;
  if (auto event = TakeHeader(payload)) return event;
  const size_t header =
      style_ == Style::kExtended ? sizeof(ExtendedRequest) : sizeof(CompactRequest);
  if (payload > kMostPayload) return End("a request with a payload of more than 32 MiB");
  if (request_.command == kCmdDisconnect) return End("");
  const bool in_place = payload <= kMostInPlace;
  if (auto refusal = Check(payload)) {
    begin_ += header;
    skip_ = payload;
    chosen_->counters.errors.fetch_add(1, std::memory_order_relaxed);
    ReplyError(out_, request_, refusal->error, refusal->text);
    return std::nullopt;
  }
  large_ = !in_place;
  if (in_place && end_ - begin_ < header + payload) return Event::kMore;
  begin_ += header;
  if (in_place) {
    request_.payload = Pending().first(payload);
    begin_ += payload;
    return Deliver();
  }
  request_.memory = Memory(payload);
  payload_wanted_ = payload;
  payload_here_ = std::min<uint64_t>(payload, end_ - begin_);
  std::memcpy(request_.memory.data(), input_.data() + begin_, payload_here_);
  begin_ += payload_here_;
  return std::nullopt;
}

// Loads the header that comes next into request_, but does not go past it.
std::optional<Session::Event> Session::TakeHeader(uint64_t& payload) {
  request_ = Request{.style = style_};
  if (style_ == Style::kExtended) {
    auto raw = LoadAt<ExtendedRequest>(Pending(), 0);
    if (!raw) return Event::kMore;
    if (raw->magic != kExtendedRequestMagic) return End("what should be a request is none");
    request_.flags = raw->flags & ~kFlagPayloadLen;
    request_.command = static_cast<Command>(uint16_t{raw->command});
    request_.cookie = raw->cookie;
    request_.range = {raw->offset, raw->length};
    if (raw->flags & kFlagPayloadLen) payload = raw->length;
  } else {
    auto raw = LoadAt<CompactRequest>(Pending(), 0);
    if (!raw) return Event::kMore;
    if (raw->magic != kRequestMagic) return End("what should be a request is none");
    request_.flags = raw->flags;
    request_.command = static_cast<Command>(uint16_t{raw->command});
    request_.cookie = raw->cookie;
    request_.range = {raw->offset, raw->length};
    if (request_.command == kCmdWrite) payload = raw->length;
  }
  request_.wire_offset = request_.range.offset;
  if (request_.command == kCmdResize) request_.range.length = 0;  // means nothing
  return std::nullopt;
}

std::optional<Session::Event> Session::TakePayload() {
  if (payload_here_ < payload_wanted_) return Event::kMore;
  request_.payload = std::as_const(request_.memory).bytes();
  payload_wanted_ = payload_here_ = 0;
  return Deliver();
}

// A request whose payload is here.
std::optional<Session::Event> Session::Deliver() {
  if (request_.command != kCmdBlockStatus) return Event::kRequest;
  std::optional<Refusal> refusal;
  if (request_.payload.empty()) {
    request_.contexts = contexts_;
  } else {
    refusal = TakeContexts();
  }
  if (!refusal) return Event::kRequest;
  chosen_->counters.errors.fetch_add(1, std::memory_order_relaxed);
  ReplyError(out_, request_, refusal->error, refusal->text);
  return std::nullopt;
}

// Of a BLOCK_STATUS with a payload: which contexts, and how far.
std::optional<Session::Refusal> Session::TakeContexts() {
  auto head = LoadAt<BlockStatusPayload>(request_.payload, 0);
  const size_t ids = request_.payload.size() - std::min(request_.payload.size(), sizeof(*head));
  if (!head || ids == 0 || ids % sizeof(be32) != 0) {
    return Refusal{kInvalid, "the payload is no length with a list of contexts"};
  }
  for (size_t at = sizeof(*head); at < request_.payload.size(); at += sizeof(be32)) {
    uint32_t id = *LoadAt<be32>(request_.payload, at);
    if (std::ranges::find(contexts_, id) == contexts_.end() ||
        std::ranges::find(request_.contexts, id) != request_.contexts.end()) {
      return Refusal{kInvalid, "a context that was not selected, or one named twice"};
    }
    request_.contexts.push_back(id);
  }
  request_.payload = {};
  request_.range.length = head->length;
  return CheckRange();
}

std::optional<Session::Refusal> Session::Check(uint64_t payload) const {
  const Command command = request_.command;
  const bool writes = command == kCmdWrite;
  if (command > (resize_ ? kCmdResize : kCmdBlockStatus)) {
    return Refusal{kInvalid, "unknown command"};
  }
  if ((request_.flags & ~AllowedFlags(request_)) != 0) {
    return Refusal{kInvalid, "a flag that this command does not have"};
  }
  if (style_ == Style::kExtended && writes && payload == 0 && !request_.range.empty()) {
    return Refusal{kInvalid, "a write without a payload"};
  }
  if (!writes && payload > 0) {
    // Its range is in the payload.
    const bool filtered = command == kCmdBlockStatus && !contexts_.empty();
    if (!filtered) return Refusal{kInvalid, "a payload that this command does not have"};
    // Each selected context once, at most.
    const uint64_t most = sizeof(BlockStatusPayload) + contexts_.size() * sizeof(be32);
    if (payload > most) return Refusal{kInvalid, "more contexts than were selected"};
    return std::nullopt;
  }
  if (Changes(command) && !chosen_->writable) {
    return Refusal{kPermission, "the export is read-only"};
  }
  if (command == kCmdBlockStatus && contexts_.empty()) {
    return Refusal{kInvalid, "no context was selected"};
  }
  return CheckRange();
}

std::optional<Session::Refusal> Session::CheckRange() const {
  const Command command = request_.command;
  const Range range = request_.range;
  if (command == kCmdFlush) {
    if (range == Range{}) return std::nullopt;
    return Refusal{kInvalid, "a flush is of everything"};
  }
  if (command == kCmdResize) return std::nullopt;
  if (!FitsIn(range.offset, range.length, chosen_->size())) {
    const bool grows = command == kCmdWrite || command == kCmdWriteZeroes;
    // What was there before the export became smaller.
    const bool gone = FitsIn(range.offset, range.length, chosen_->largest_size());
    return Refusal{grows || gone ? kNoSpaceLeft : kInvalid, "past the end of the export"};
  }
  if (command == kCmdBlockStatus && range.empty()) return Refusal{kInvalid, "an empty range"};
  if (command == kCmdRead && range.length > kMostPayload) {
    return Refusal{style_ == Style::kSimple ? kInvalid : kOverflow, "more than 32 MiB at once"};
  }
  return std::nullopt;
}

}  // namespace platter::nbd
