#include "nbd/client/handshake.h"

#include <algorithm>
#include <array>
#include <bit>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/math.h"
#include "nbd/nbd_wire.h"

namespace platter::nbd {

namespace {

constexpr uint32_t kMostReply = 64 << 10;  // bytes of a reply to an option that make sense
constexpr int kMostReplies = 1000;         // to one option
constexpr std::string_view kAllocation = "base:allocation";

using Data = std::vector<std::byte>;

template <class T>
void Append(Data& data, const T& value) {
  ConstBytes bytes = AsBytes(value);
  data.insert(data.end(), bytes.begin(), bytes.end());
}
void AppendText(Data& data, std::string_view text) {
  ConstBytes bytes = AsBytes(text);
  data.insert(data.end(), bytes.begin(), bytes.end());
}

template <class T>
Result<T> Receive(Stream& stream) {
  T value;
  TRY(stream.Read(std::as_writable_bytes(std::span(&value, 1))));
  return value;
}

struct Reply {
  uint32_t type = 0;
  Data data;

  bool is_error() const { return (type & kRepErrorBit) != 0; }
  std::string_view text() const { return AsText(data); }
};

std::string_view Meaning(uint32_t type) {
  switch (type) {
    case kRepErrUnsupported: return "it does not know the option";
    case kRepErrPolicy: return "its policy forbids it";
    case kRepErrInvalid: return "it takes the request for invalid";
    case kRepErrPlatform: return "its platform cannot do it";
    case kRepErrTlsRequired: return "it wants TLS (nbds://)";
    case kRepErrUnknown: return "it has no such export";
    case kRepErrShutdown: return "it is shutting down";
    case kRepErrBlockSizeRequired: return "it wants block sizes to be agreed";
    case kRepErrTooBig: return "the request is too big for it";
    case kRepErrExtendedHeadersRequired: return "it wants extended headers";
    default: return "it gives no reason that we know";
  }
}

class Handshake {
 public:
  Handshake(const Uri& uri, std::unique_ptr<Stream> stream)
      : uri_(uri), stream_(std::move(stream)) {}

  Result<Opened> Run() {
    TRY_AS("handshake", Greet());
    if (!done_) TRY(Negotiate());
    TRY(CheckSizes());
    return Opened{std::move(stream_), agreed_};
  }

 private:
  Result<> Greet() {
    struct Start {
      be64 magic, kind;
    };
    const auto start = TRY(Receive<Start>(*stream_));
    if (start.magic != kGreetingMagic) return Fail(Code::kIo, "this is no NBD server");
    if (start.kind == kOldstyleMagic) return GreetOldstyle();
    if (start.kind != kOptionMagic) return Fail(Code::kIo, "the server speaks no NBD that we know");
    const uint16_t flags = TRY(Receive<be16>(*stream_));
    fixed_ = (flags & kFixedNewstyle) != 0;
    no_zeroes_ = (flags & kNoZeroes) != 0;
    ClientFlags ours;
    ours.flags = flags & (kFixedNewstyle | kNoZeroes);
    return stream_->Write(AsBytes(ours));
  }

  // "Oldstyle negotiation": the server has one export and tells of it.
  Result<> GreetOldstyle() {
    struct Rest {
      be64 size;
      be16 handshake_flags, flags;
      std::byte zeroes[kExportNameZeroes];
    };
    if (uri_.tls) return Fail(Code::kRefused, "an old server has no TLS");
    if (!uri_.export_name.empty()) {
      return Fail(Code::kRefused, "an old server has one export, without a name");
    }
    const auto rest = TRY(Receive<Rest>(*stream_));
    agreed_.size = rest.size;
    agreed_.flags = rest.flags;
    done_ = true;
    return {};
  }

  Result<> Negotiate() {
    if (uri_.tls) TRY(StartTlsNow());
    if (!fixed_) return EnterByName();
    agreed_.extended = TRY(Agree(kOptExtendedHeaders));
    agreed_.structured = agreed_.extended || TRY(Agree(kOptStructuredReply));
    if (agreed_.structured) TRY_AS("choosing a context", ChooseContext());
    return Enter();
  }

  Result<> StartTlsNow() {
    if (!fixed_) return Fail(Code::kRefused, "TLS: the server is too old for it");
    TRY(Send(kOptStartTls, {}));
    const Reply reply = TRY(Next(kOptStartTls));
    if (reply.type != kRepAck) return Refused("TLS", reply);
    stream_ = TRY(StartTls(std::move(stream_), uri_));
    return {};
  }

  // An option without data that the server takes or does not.
  Result<bool> Agree(Option option) {
    TRY(Send(option, {}));
    const Reply reply = TRY(Next(option));
    if (reply.type == kRepErrTlsRequired || reply.type == kRepErrShutdown) {
      return Refused("the server refuses", reply);
    }
    return reply.type == kRepAck;
  }

  Result<> ChooseContext() {
    Data data;
    Append(data, be32(static_cast<uint32_t>(uri_.export_name.size())));
    AppendText(data, uri_.export_name);
    Append(data, be32(1));
    Append(data, be32(static_cast<uint32_t>(kAllocation.size())));
    AppendText(data, kAllocation);
    TRY(Send(kOptSetMetaContext, data));
    for (int i = 0; i < kMostReplies; ++i) {
      const Reply reply = TRY(Next(kOptSetMetaContext));
      // The server may have none: then all is data. What is wrong with the export GO will tell.
      if (reply.type == kRepAck || reply.is_error()) return {};
      auto id = LoadAt<be32>(reply.data, 0);
      if (reply.type != kRepMetaContext || !id) return Fail(Code::kIo, "a malformed reply");
      if (reply.text().substr(4) == kAllocation) agreed_.allocation = *id;
    }
    return Fail(Code::kIo, "the server's replies do not end");
  }

  Result<> Enter() {
    Data data;
    Append(data, be32(static_cast<uint32_t>(uri_.export_name.size())));
    AppendText(data, uri_.export_name);
    Append(data, be16(1));
    Append(data, be16(kInfoBlockSize));
    TRY(Send(kOptGo, data));
    bool told = false;
    for (int i = 0; i < kMostReplies; ++i) {
      const Reply reply = TRY(Next(kOptGo));
      if (reply.type == kRepErrUnsupported) return EnterByName();
      if (reply.is_error()) {
        return Refused(fmt::format("export '{}'", Printable(uri_.export_name)), reply);
      }
      if (reply.type == kRepAck) {
        if (told) return {};
        return Fail(Code::kIo, "handshake: the server does not tell the export's size");
      }
      if (reply.type == kRepInfo) told = TakeInfo(reply.data) || told;
    }
    return Fail(Code::kIo, "handshake: the server's replies do not end");
  }

  // True for the one that has to come.
  bool TakeInfo(ConstBytes data) {
    const auto type = LoadAt<be16>(data, 0);
    const auto info = LoadAt<InfoExport>(data, 0);
    const auto sizes = LoadAt<InfoBlockSize>(data, 0);
    if (type == kInfoExport && info) {
      agreed_.size = info->size;
      agreed_.flags = info->flags;
      return true;
    }
    if (type == kInfoBlockSize && sizes) {
      agreed_.minimum = sizes->minimum;
      agreed_.preferred = sizes->preferred;
      agreed_.most_payload = sizes->most_payload;
    }
    return false;
  }

  Result<> EnterByName() {
    TRY(Send(kOptExportName, AsBytes(std::string_view(uri_.export_name))));
    auto reply = Receive<ExportNameReply>(*stream_);
    // All that such a server can do to refuse is to hang up.
    if (!reply) {
      return Fail(Code::kRefused, "export '{}': {}", Printable(uri_.export_name),
                  reply.error().text());
    }
    agreed_.size = reply->size;
    agreed_.flags = reply->flags;
    if (!no_zeroes_) TRY(Receive<std::array<std::byte, kExportNameZeroes>>(*stream_));
    return {};
  }

  Result<> CheckSizes() {
    Agreed& a = agreed_;
    if (a.size > INT64_MAX) return Fail(Code::kUnsupported, "the export has {} bytes", a.size);
    if (!a.has(kHasFlags)) a.flags = a.has(kReadOnly) ? kReadOnly : 0;
    if (!std::has_single_bit(a.minimum) || a.minimum > 64 * kKiB || a.preferred < a.minimum ||
        a.most_payload < a.minimum) {
      return Fail(Code::kIo, "handshake: block sizes {}, {}, {} make no sense", a.minimum,
                  a.preferred, a.most_payload);
    }
    a.most_payload =
        static_cast<uint32_t>(RoundDown(std::min(a.most_payload, kMostPayload), a.minimum));
    return {};
  }

  Result<> Send(Option option, ConstBytes data) {
    OptionHeader header;
    header.magic = kOptionMagic;
    header.option = option;
    header.length = static_cast<uint32_t>(data.size());
    const iovec parts[] = {{&header, sizeof header},
                           {const_cast<std::byte*>(data.data()), data.size()}};
    return stream_->Write(std::span(parts)).WithPrefix("handshake");
  }

  Result<Reply> Next(Option option) {
    const auto header = TRY_AS("handshake", Receive<OptionReplyHeader>(*stream_));
    if (header.magic != kOptionReplyMagic || header.option != option) {
      return Fail(Code::kIo, "handshake: the server's reply is not one to what was asked");
    }
    if (header.length > kMostReply) {
      return Fail(Code::kIo, "handshake: a reply of {} bytes", uint32_t{header.length});
    }
    Reply reply{header.type, Data(header.length)};
    TRY_AS("handshake", stream_->Read(Bytes(reply.data)));
    return reply;
  }

  static std::unexpected<Error> Refused(std::string_view what, const Reply& reply) {
    const std::string text = Printable(reply.text());
    return Fail(Code::kRefused, "{}: {}{}{}{}", what, Meaning(reply.type), text.empty() ? "" : " (",
                text, text.empty() ? "" : ")");
  }

  const Uri& uri_;
  std::unique_ptr<Stream> stream_;
  Agreed agreed_;
  bool fixed_ = false, no_zeroes_ = false, done_ = false;
};

}  // namespace

Result<Opened> OpenExport(const Uri& uri, std::chrono::milliseconds patience) {
  return ShakeHands(uri, TRY(Connect(uri, patience)));
}

Result<Opened> ShakeHands(const Uri& uri, std::unique_ptr<Stream> stream) {
  return Handshake(uri, std::move(stream)).Run();
}

}  // namespace platter::nbd
