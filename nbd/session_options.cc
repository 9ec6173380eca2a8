// The handshake: client flags, then options until one of them chooses an export.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/math.h"
#include "nbd/session.h"

namespace platter::nbd {
namespace {

// Longer than any option that makes sense: a name, and a dozen queries of the longest sort.
constexpr uint32_t kMostOption = 60 * kKiB;
constexpr uint32_t kPreferredBlock = 4 * kKiB;

// Reads an option's data from front to back; `good` is false once it was too short.
class Reader {
 public:
  explicit Reader(ConstBytes data) : rest_(data) {}

  template <class T>
  T Take() {
    auto value = LoadAt<OnDisk<T, std::endian::big>>(rest_, 0);
    if (!value) {
      good = false;
      return 0;
    }
    rest_ = rest_.subspan(sizeof(T));
    return *value;
  }

  // A string with its length, of 32 bits, before it.
  std::string_view TakeString() {
    const uint32_t length = Take<uint32_t>();
    if (length > kMostString || length > rest_.size()) {
      good = false;
      return {};
    }
    std::string_view text = AsText(rest_.first(length));
    rest_ = rest_.subspan(length);
    return text;
  }

  ConstBytes rest() const { return rest_; }

  bool good = true;

 private:
  ConstBytes rest_;
};

template <class T>
void Append(std::string& to, const T& value) {
  to += AsText(AsBytes(value));
}

// LIST: no query is all of them, "namespace:" (or "qemu:dirty-bitmap:") those that begin so.
bool Matches(std::string_view query, std::string_view name, bool listing) {
  return query == name || (listing && query.ends_with(':') && name.starts_with(query));
}

}  // namespace

std::optional<Session::Event> Session::NextClientFlags() {
  auto raw = LoadAt<ClientFlags>(Pending(), 0);
  if (!raw) return Event::kMore;
  const uint32_t flags = raw->flags;
  if ((flags & ~uint32_t{kFixedNewstyle | kNoZeroes}) != 0) {
    return End("the client set flags that we do not know");
  }
  begin_ += sizeof(*raw);
  fixed_ = (flags & kFixedNewstyle) != 0;
  zeroes_ = (flags & kNoZeroes) == 0;
  phase_ = Phase::kOptions;
  return std::nullopt;
}

std::optional<Session::Event> Session::NextOption() {
  auto header = LoadAt<OptionHeader>(Pending(), 0);
  if (!header) return Event::kMore;
  const uint32_t option = header->option, length = header->length;
  if (header->magic != kOptionMagic) return End("what should be an option is none");
  if (length > kMostOption) {
    if (option == kOptExportName || length > kMostPayload) return End("an option that is too long");
    begin_ += sizeof(*header);
    skip_ = length;
    ReplyText(option, kRepErrTooBig, "too long");
    return std::nullopt;
  }
  if (end_ - begin_ < sizeof(*header) + length) return Event::kMore;
  ConstBytes data = Pending().subspan(sizeof(*header), length);
  begin_ += sizeof(*header) + length;
  Event event = DoOption(option, data);
  if (event == Event::kMore) return std::nullopt;
  return event;
}

// kMore: go on.
Session::Event Session::DoOption(uint32_t option, ConstBytes data) {
  if (options_.tls == TlsPolicy::kRequired && !tls_ && option != kOptStartTls &&
      option != kOptAbort) {
    if (option == kOptExportName) return End("the client does not speak TLS, which is required");
    ReplyText(option, kRepErrTlsRequired, "this server requires TLS");
    return Event::kMore;
  }
  switch (option) {
    case kOptExportName: return DoExportName(data);
    case kOptAbort: Reply(option, kRepAck); return End("");
    case kOptStartTls: return DoStartTls(data);
    case kOptInfo:
    case kOptGo: return DoInfo(option, data);
    case kOptList: DoList(data); break;
    case kOptStructuredReply:
    case kOptExtendedHeaders: DoExtension(option, data); break;
    case kOptListMetaContext:
    case kOptSetMetaContext: DoMetaContext(option, data); break;
    default: ReplyText(option, kRepErrUnsupported, "unknown option");
  }
  return Event::kMore;
}

void Session::Reply(uint32_t option, uint32_t type, ConstBytes data) {
  out_.Put(OptionReplyHeader{kOptionReplyMagic, option, type, static_cast<uint32_t>(data.size())});
  out_.Append(data);
}

void Session::ReplyText(uint32_t option, uint32_t type, std::string_view text) {
  Reply(option, type, AsBytes(text.substr(0, kMostString)));
}

Session::Event Session::DoExportName(ConstBytes data) {
  if (style_ == Style::kExtended) return End("EXPORT_NAME after extended headers");
  if (data.size() > kMostString) return End("a name that is too long");
  auto found = exports_.Find(AsText(data));
  // This option has no way of saying no.
  if (!found) return End(std::string(found.error().text()));
  out_.Put(ExportNameReply{(*found)->size(), TransmissionFlags(**found, false)});
  if (zeroes_) std::ranges::fill(out_.Append(kExportNameZeroes), std::byte{0});
  Enter(std::move(*found));
  return Event::kMore;
}

// `resize`: the client asked whether it may change the size.
uint16_t Session::TransmissionFlags(const Export& of, bool resize) const {
  uint16_t flags = kHasFlags | kCanMultiConn | kSendCache;
  if (of.rotational) flags |= kRotational;
  if (style_ != Style::kSimple) flags |= kSendDf;
  if (style_ == Style::kExtended && described_.get() == &of && !contexts_.empty()) {
    flags |= kBlockStatusPayload;
  }
  if (!of.writable) return flags | kReadOnly;
  if (resize && of.resizable) flags |= kSendResize;
  return flags | kSendFlush | kSendFua | kSendTrim | kSendWriteZeroes | kSendFastZero;
}

void Session::Enter(std::shared_ptr<Export> chosen) {
  chosen_ = std::move(chosen);
  // Contexts were selected of one export: for another they mean nothing.
  if (described_ != chosen_) contexts_.clear();
  phase_ = Phase::kTransmission;
}

void Session::DoList(ConstBytes data) {
  if (!data.empty()) return ReplyText(kOptList, kRepErrInvalid, "LIST has no data");
  exports_.ForEach([&](const std::string& name, const std::string& description) {
    std::string text;
    Append(text, be32(static_cast<uint32_t>(name.size())));
    text += name;
    text += description;
    Reply(kOptList, kRepServer, AsBytes(std::string_view(text)));
  });
  Reply(kOptList, kRepAck);
}

Session::Event Session::DoInfo(uint32_t option, ConstBytes data) {
  Reader reader(data);
  std::string_view name = reader.TakeString();
  const uint16_t count = reader.Take<uint16_t>();
  std::vector<uint16_t> wanted;
  for (uint16_t i = 0; i < count && reader.good; ++i) wanted.push_back(reader.Take<uint16_t>());
  if (!reader.good || !reader.rest().empty()) {
    ReplyText(option, kRepErrInvalid, "no name with a list of information types");
    return Event::kMore;
  }
  auto found = exports_.Find(name);
  if (!found) {
    ReplyText(option, kRepErrUnknown, found.error().text());
    return Event::kMore;
  }
  const Export& of = **found;
  auto wants = [&](InfoType type) { return std::ranges::find(wanted, type) != wanted.end(); };
  auto reply_text = [&](InfoType type, const std::string& value) {
    std::string text;
    Append(text, be16(type));
    Reply(option, kRepInfo, AsBytes(std::string_view(text += value)));
  };
  const uint16_t flags = TransmissionFlags(of, wants(kInfoResize));
  Reply(option, kRepInfo, AsBytes(InfoExport{kInfoExport, of.size(), flags}));
  if (wants(kInfoName)) reply_text(kInfoName, of.name);
  if (wants(kInfoDescription)) reply_text(kInfoDescription, of.description);
  if (wants(kInfoBlockSize)) {
    Reply(option, kRepInfo,
          AsBytes(InfoBlockSize{kInfoBlockSize, 1u, kPreferredBlock, kMostPayload}));
  }
  Reply(option, kRepAck);
  if (option == kOptGo) {
    resize_ = (flags & kSendResize) != 0;
    Enter(std::move(*found));
  }
  return Event::kMore;
}

void Session::DoExtension(uint32_t option, ConstBytes data) {
  if (!data.empty()) return ReplyText(option, kRepErrInvalid, "this option has no data");
  if (option == kOptExtendedHeaders) {
    style_ = Style::kExtended;
  } else if (style_ == Style::kExtended) {
    return ReplyText(option, kRepErrExtendedHeadersRequired, "extended headers are agreed already");
  } else {
    style_ = Style::kStructured;
  }
  Reply(option, kRepAck);
}

void Session::DoMetaContext(uint32_t option, ConstBytes data) {
  const bool listing = option == kOptListMetaContext;
  if (!listing) {
    // Whatever comes of this, what was selected before is no more.
    described_ = nullptr;
    contexts_.clear();
  }
  if (style_ == Style::kSimple) {
    return ReplyText(option, kRepErrInvalid, "structured replies have to be agreed first");
  }
  Reader reader(data);
  std::string_view name = reader.TakeString();
  const uint32_t count = reader.Take<uint32_t>();
  if (!reader.good) return ReplyText(option, kRepErrInvalid, "no name with a list of queries");
  auto found = exports_.Find(name);
  if (!found) return ReplyText(option, kRepErrUnknown, found.error().text());
  if (!SelectContexts(option, **found, reader.rest(), count)) {
    contexts_.clear();
    return ReplyText(option, kRepErrInvalid, "a query that is no string of its length");
  }
  if (!listing) described_ = std::move(*found);
  Reply(option, kRepAck);
}

// Replies with each context that a query names, and selects it unless they are only being listed.
// False if `queries` are not `count` strings.
bool Session::SelectContexts(uint32_t option, const Export& of, ConstBytes queries,
                             uint32_t count) {
  const bool listing = option == kOptListMetaContext;
  std::vector<std::string_view> wanted;
  Reader reader(queries);
  for (uint32_t i = 0; i < count && reader.good; ++i) wanted.push_back(reader.TakeString());
  if (!reader.good || !reader.rest().empty()) return false;
  for (uint32_t id = 0; id < of.contexts.size(); ++id) {
    const std::string& name = of.contexts[id].name;
    auto matches = [&](std::string_view query) { return Matches(query, name, listing); };
    if (!(listing && count == 0) && std::ranges::none_of(wanted, matches)) continue;
    std::string text;
    Append(text, be32(listing ? 0 : id));
    Reply(option, kRepMetaContext, AsBytes(std::string_view(text += name)));
    if (!listing) contexts_.push_back(id);
  }
  return true;
}

Session::Event Session::DoStartTls(ConstBytes data) {
  auto refuse = [&](OptionReply why, std::string_view text) {
    ReplyText(kOptStartTls, why, text);
    return Event::kMore;
  };
  if (!data.empty()) return refuse(kRepErrInvalid, "STARTTLS has no data");
  if (tls_) return refuse(kRepErrInvalid, "TLS is spoken already");
  if (options_.tls == TlsPolicy::kNone) return refuse(kRepErrPolicy, "TLS is not set up here");
  if (!fixed_) return End("STARTTLS without fixed newstyle");
  if (begin_ != end_) return End("bytes between STARTTLS and TLS");
  Reply(kOptStartTls, kRepAck);
  phase_ = Phase::kStartingTls;
  return Event::kStartTls;
}

void Session::TlsStarted() {
  CHECK(phase_ == Phase::kStartingTls && begin_ == end_);
  tls_ = true;
  style_ = Style::kSimple;
  described_ = nullptr;
  contexts_.clear();
  phase_ = Phase::kOptions;
}

}  // namespace platter::nbd
