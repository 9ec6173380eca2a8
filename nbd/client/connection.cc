#include "nbd/client/connection.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "io/iov.h"

namespace platter::nbd {

namespace {

constexpr size_t kBuffer = 64 * kKiB;
constexpr size_t kDirect = 16 * kKiB;    // reads of more go past the buffer
constexpr size_t kMostFragments = 4096;  // parts of one READ that do not touch

std::unexpected<Error> Malformed(std::string_view what) {
  return Fail(Code::kIo, "the server breaks the protocol: {}", what);
}

// Enters the part of a READ that has come; false if some of it had come before.
bool Cover(std::map<uint64_t, uint64_t>& covered, Range part) {
  auto next = covered.lower_bound(part.offset);
  if (next != covered.end() && next->first < part.end()) return false;
  auto previous = next == covered.begin() ? covered.end() : std::prev(next);
  if (previous != covered.end() && previous->second > part.offset) return false;
  uint64_t end = part.end();
  if (next != covered.end() && next->first == end) {
    end = next->second;
    covered.erase(next);
  }
  if (previous != covered.end() && previous->second == part.offset) {
    previous->second = end;
  } else {
    covered[part.offset] = end;
  }
  return true;
}

}  // namespace

void Call::Reset() {
  if (runs) runs->clear();
  error = 0;
  message.clear();
  state = kOpen;
  covered.clear();
}

ClientConnection::ClientConnection(Opened opened)
    : agreed_(opened.agreed), stream_(std::move(opened.stream)), buffer_(kBuffer) {
  stream_->SetPatience(std::chrono::milliseconds(0));  // a request may take its time
}

ClientConnection::~ClientConnection() {
  if (problem_) return;
  Call goodbye;
  goodbye.command = kCmdDisconnect;
  stream_->SetPatience(std::chrono::seconds(1));
  (void)Send(goodbye, 0);
}

size_t ClientConnection::in_flight() const {
  std::lock_guard lock(state_);
  return calls_.size();
}

std::optional<Error> ClientConnection::problem() const {
  std::lock_guard lock(state_);
  if (!problem_) return std::nullopt;
  return problem_->Clone();
}

void ClientConnection::Close(Error why) {
  std::lock_guard lock(state_);
  if (!problem_) problem_ = std::move(why);
  stream_->Shutdown();
  // Whoever reads may be filling a call's memory; it learns of this by what the stream says.
  if (!reading_) LoseAllLocked();
}

void ClientConnection::LoseAllLocked() {
  for (auto& [cookie, call] : calls_) {
    call->state = Call::kLost;
    call->wake.NotifyAll();
  }
  calls_.clear();
}

bool ClientConnection::Perform(Call& call) {
  {
    std::lock_guard send(send_);
    uint64_t cookie = 0;
    {
      std::lock_guard lock(state_);
      if (problem_) return false;
      cookie = ++next_cookie_;
      calls_[cookie] = &call;
    }
    if (auto sent = Send(call, cookie); !sent) Close(std::move(sent.error()));
  }
  Await(call);
  return call.state == Call::kAnswered;
}

Result<> ClientConnection::Send(const Call& call, uint64_t cookie) {
  auto fill = [&](auto& request, uint32_t magic, uint16_t flags) {
    request.magic = magic;
    request.flags = flags;
    request.command = call.command;
    request.cookie = cookie;
    request.offset = call.range.offset;
    request.length = static_cast<uint32_t>(call.range.length);
  };
  CompactRequest compact;
  ExtendedRequest extended;
  std::vector<iovec> parts;
  if (agreed_.extended) {
    const bool payload = call.command == kCmdWrite;
    fill(extended, kExtendedRequestMagic, call.flags | (payload ? kFlagPayloadLen : 0));
    extended.length = call.range.length;
    parts.push_back({&extended, sizeof extended});
  } else {
    fill(compact, kRequestMagic, call.flags);
    parts.push_back({&compact, sizeof compact});
  }
  parts.insert(parts.end(), call.from.begin(), call.from.end());
  return stream_->Write(std::span<const iovec>(parts));
}

// Reads replies, or lets another thread do so, until this call's is there.
void ClientConnection::Await(Call& call) {
  std::unique_lock lock(state_);
  while (call.state == Call::kOpen) {
    if (reading_) {
      call.wake.Wait(lock, [&] { return call.state != Call::kOpen || !reading_; });
      continue;
    }
    reading_ = true;
    while (call.state == Call::kOpen) {
      lock.unlock();
      auto received = ReceiveReply();
      lock.lock();
      if (!received && !problem_) problem_ = std::move(received.error());
      if (problem_) {
        stream_->Shutdown();
        LoseAllLocked();
      }
    }
    reading_ = false;
  }
  // One of those who still wait takes over: the first, since a later one may still be sending, to a
  // server that takes nothing more until its replies are read.
  if (!reading_ && !calls_.empty()) calls_.begin()->second->wake.NotifyAll();
}

Result<> ClientConnection::ReceiveReply() {
  const uint32_t magic = TRY(Take<be32>());
  if (magic == kSimpleReplyMagic && !agreed_.extended) return ReceiveSimple();
  if (magic == kStructuredReplyMagic && agreed_.structured && !agreed_.extended) {
    return ReceiveChunk(magic);
  }
  if (magic == kExtendedReplyMagic && agreed_.extended) return ReceiveChunk(magic);
  return Malformed(fmt::format("a reply begins with {:#x}", magic));
}

Result<> ClientConnection::ReceiveSimple() {
  struct Rest {
    be32 error;
    be64 cookie;
  };
  const auto rest = TRY(Take<Rest>());
  Call& call = *TRY(Find(rest.cookie));
  call.error = rest.error;
  if (call.command == kCmdRead) {
    if (agreed_.structured) return Malformed("a READ is answered by a simple reply");
    if (call.error == 0) {
      TRY(ReadInto(call.into, {0, call.range.length}));
      Cover(call.covered, call.range);
    }
  }
  return Finish(rest.cookie, call);
}

Result<> ClientConnection::ReceiveChunk(uint32_t magic) {
  uint16_t flags = 0, type = 0;
  uint64_t cookie = 0, length = 0;
  if (magic == kExtendedReplyMagic) {
    struct Rest {
      be16 flags, type;
      be64 cookie, offset, length;
    };
    const auto rest = TRY(Take<Rest>());
    flags = rest.flags, type = rest.type, cookie = rest.cookie, length = rest.length;
  } else {
    struct Rest {
      be16 flags, type;
      be64 cookie;
      be32 length;
    };
    const auto rest = TRY(Take<Rest>());
    flags = rest.flags, type = rest.type, cookie = rest.cookie, length = rest.length;
  }
  Call& call = *TRY(Find(cookie));
  TRY(TakeChunk(call, type, length));
  return flags & kReplyDone ? Finish(cookie, call) : Result<>{};
}

// Only who reads ends calls, so this one stays.
Result<Call*> ClientConnection::Find(uint64_t cookie) {
  std::lock_guard lock(state_);
  auto found = calls_.find(cookie);
  if (found != calls_.end()) return found->second;
  return Malformed("a reply to what was not asked");
}

Result<> ClientConnection::TakeChunk(Call& call, uint16_t type, uint64_t length) {
  switch (type) {
    case kChunkNone: return length == 0 ? Result<>{} : Malformed("an empty chunk with content");
    case kChunkData: return TakeData(call, length);
    case kChunkHole: return TakeHole(call, length);
    case kChunkStatus: return TakeStatus<StatusHeader, StatusDescriptor>(call, length);
    case kChunkStatus64: return TakeStatus<StatusHeader64, StatusDescriptor64>(call, length);
    default: break;
  }
  if (type & kChunkErrorBit) return TakeError(call, type, length);
  return Malformed(fmt::format("a chunk of type {}", type));
}

Result<> ClientConnection::TakeData(Call& call, uint64_t length) {
  if (length <= sizeof(OffsetData)) return Malformed("a chunk of data is too short");
  const uint64_t offset = TRY(Take<OffsetData>()).offset;
  const Range part{offset, length - sizeof(OffsetData)};
  if (call.command != kCmdRead || offset < call.range.offset ||
      !FitsIn(offset - call.range.offset, part.length, call.range.length) ||
      !Cover(call.covered, part) || call.covered.size() > kMostFragments) {
    return Malformed("a chunk of data that was not asked for");
  }
  return ReadInto(call.into, {offset - call.range.offset, part.length});
}

Result<> ClientConnection::TakeHole(Call& call, uint64_t length) {
  if (length != sizeof(OffsetHole)) return Malformed("a chunk for a hole has the wrong length");
  const auto hole = TRY(Take<OffsetHole>());
  const Range part{hole.offset, hole.length};
  if (call.command != kCmdRead || part.empty() || part.offset < call.range.offset ||
      !FitsIn(part.offset - call.range.offset, part.length, call.range.length) ||
      !Cover(call.covered, part) || call.covered.size() > kMostFragments) {
    return Malformed("a hole that was not asked for");
  }
  IovFillZero(call.into, part.offset - call.range.offset, part.length);
  return {};
}

template <class Header, class Descriptor>
Result<> ClientConnection::TakeStatus(Call& call, uint64_t length) {
  if (call.command != kCmdBlockStatus || length < sizeof(Header) + sizeof(Descriptor) ||
      (length - sizeof(Header)) % sizeof(Descriptor) != 0 ||
      (length - sizeof(Header)) / sizeof(Descriptor) > kMostDescriptors) {
    return Malformed("a chunk of block status has the wrong length");
  }
  const uint32_t context = TRY(Take<Header>()).context;
  length -= sizeof(Header);
  if (context != agreed_.allocation || !call.runs->empty()) return Skip(length);
  uint64_t left = call.range.length;
  for (; length > 0; length -= sizeof(Descriptor)) {
    const auto descriptor = TRY(Take<Descriptor>());
    if (descriptor.length == 0) return Malformed("an extent without bytes");
    // The last one may say more than was asked.
    const uint64_t part = std::min<uint64_t>(descriptor.length, left);
    if (part > 0) call.runs->push_back({part, descriptor.status});
    left -= part;
  }
  return {};
}

Result<> ClientConnection::TakeError(Call& call, uint16_t type, uint64_t length) {
  if (length < sizeof(ErrorChunk)) return Malformed("an error without its number");
  const auto chunk = TRY(Take<ErrorChunk>());
  length -= sizeof(ErrorChunk);
  if (chunk.message_length > length || chunk.message_length > kMostString) {
    return Malformed("an error's message is too long");
  }
  std::string message(chunk.message_length, '\0');
  TRY(Read(std::as_writable_bytes(std::span(message))));
  length -= message.size();
  if (type == kChunkErrorOffset && length != sizeof(be64)) {
    return Malformed("an error without its offset");
  }
  TRY(Skip(length));
  call.error = chunk.error != 0 ? uint32_t{chunk.error} : kIoError;
  call.message = Printable(message);
  return {};
}

Result<> ClientConnection::Finish(uint64_t cookie, Call& call) {
  if (call.error == 0 && call.command == kCmdRead) {
    const auto first = call.covered.begin();
    if (call.covered.size() != 1 || first->first != call.range.offset ||
        first->second != call.range.end()) {
      return Malformed("a reply lacks a part of what was asked for");
    }
  }
  std::lock_guard lock(state_);
  calls_.erase(cookie);
  call.state = Call::kAnswered;
  call.wake.NotifyAll();
  return {};
}

template <class T>
Result<T> ClientConnection::Take() {
  T value;
  TRY(Read(std::as_writable_bytes(std::span(&value, 1))));
  return value;
}

Result<> ClientConnection::Read(Bytes into) {
  while (!into.empty()) {
    if (received_.empty()) {
      if (into.size() >= kDirect) {
        into = into.subspan(TRY(stream_->ReadSome(into)));
        continue;
      }
      received_ = buffer_.bytes().first(TRY(stream_->ReadSome(buffer_.bytes())));
    }
    const size_t count = std::min(into.size(), received_.size());
    std::memcpy(into.data(), received_.data(), count);
    received_ = received_.subspan(count);
    into = into.subspan(count);
  }
  return {};
}

Result<> ClientConnection::ReadInto(std::span<const iovec> into, Range part) {
  std::vector<iovec> slices;
  IovSlice(into, part.offset, part.length, slices);
  for (const iovec& slice : slices) {
    TRY(Read(Bytes(static_cast<std::byte*>(slice.iov_base), slice.iov_len)));
  }
  return {};
}

Result<> ClientConnection::Skip(uint64_t length) {
  std::byte scratch[4096];
  while (length > 0) {
    const size_t count = std::min<uint64_t>(length, sizeof scratch);
    TRY(Read(Bytes(scratch, count)));
    length -= count;
  }
  return {};
}

}  // namespace platter::nbd
