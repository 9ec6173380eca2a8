// A client's bytes, and a session driven without sockets, for tests and fuzzers.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/endian.h"
#include "cow/disk.h"
#include "formats/format.h"
#include "io/memory_store.h"
#include "nbd/answer.h"
#include "nbd/session.h"

namespace platter::nbd {

template <class T>
std::string Raw(const T& structure) {
  return std::string(AsText(AsBytes(structure)));
}

// An empty qcow2 (or raw) disk in memory.
inline std::shared_ptr<Disk> MemoryDisk(std::string_view format_name, uint64_t size) {
  const Format* format = *FindFormat(format_name);
  auto store = std::make_unique<MemoryStore>();
  CHECK(format->create(*store, {.size = size}).has_value());
  std::vector<std::unique_ptr<Layer>> layers;
  layers.push_back(*format->open(std::move(store), {.writable = true, .fresh = true}));
  return Disk::FromLayers(std::move(layers));
}

// Exports that a test made.
class TestExports final : public Exports {
 public:
  Export& Add(const std::string& name, std::shared_ptr<Layer> layer, bool writable = true) {
    auto one = std::make_shared<Export>();
    one->name = name;
    one->description = "a disk called " + name;
    one->window = {0, layer->info().size};
    if (writable && layer->resizer())
      one->resizable = std::make_unique<ResizableSize>(layer, nullptr);
    one->layer = std::move(layer);
    one->writable = writable;
    one->contexts = {{MetaContext::kAllocation, "base:allocation"},
                     {MetaContext::kDepth, "qemu:allocation-depth"}};
    all_.push_back(one);
    return *one;
  }
  Result<std::shared_ptr<Export>> Find(std::string_view name) override {
    for (const auto& one : all_) {
      if (name.empty() || one->name == name) return one;
    }
    return Fail(Code::kOutOfRange, "no such export");
  }
  void ForEach(const std::function<void(const std::string&, const std::string&)>& each) override {
    for (const auto& one : all_) each(one->name, one->description);
  }

 private:
  std::vector<std::shared_ptr<Export>> all_;
};

inline std::string OptionBytes(uint32_t option, std::string_view data = {}) {
  return Raw(OptionHeader{kOptionMagic, option, static_cast<uint32_t>(data.size())}) +
         std::string(data);
}
inline std::string StringBytes(std::string_view text) {
  return Raw(be32(static_cast<uint32_t>(text.size()))) + std::string(text);
}
inline std::string GoBytes(std::string_view name, std::vector<uint16_t> wanted = {},
                           uint32_t option = kOptGo) {
  std::string data = StringBytes(name) + Raw(be16(static_cast<uint16_t>(wanted.size())));
  for (uint16_t type : wanted) data += Raw(be16(type));
  return OptionBytes(option, data);
}
inline std::string ContextBytes(uint32_t option, std::string_view name,
                                std::vector<std::string> queries) {
  std::string data = StringBytes(name) + Raw(be32(static_cast<uint32_t>(queries.size())));
  for (const std::string& query : queries) data += StringBytes(query);
  return OptionBytes(option, data);
}
inline std::string RequestBytes(uint16_t command, uint64_t cookie, uint64_t offset, uint32_t length,
                                uint16_t flags = 0, std::string_view payload = {}) {
  return Raw(CompactRequest{kRequestMagic, flags, command, cookie, offset, length}) +
         std::string(payload);
}
inline std::string ExtendedBytes(uint16_t command, uint64_t cookie, uint64_t offset,
                                 uint64_t length, uint16_t flags = 0,
                                 std::string_view payload = {}) {
  return Raw(ExtendedRequest{kExtendedRequestMagic, flags, command, cookie, offset, length}) +
         std::string(payload);
}

// A session with everything behind it. Used by one thread.
class Driven {
 public:
  explicit Driven(Exports& exports, SessionOptions options = {})
      : session(exports, options, out_) {}

  // Feeds the bytes in pieces of at most `step`; returns what the server sent.
  std::string Feed(std::string_view bytes, size_t step = SIZE_MAX) {
    while (!bytes.empty() && !ended) {
      Bytes room = session.Room();
      CHECK(!room.empty());
      const size_t part = std::min({bytes.size(), room.size(), step});
      std::ranges::copy(AsBytes(bytes.substr(0, part)), room.begin());
      session.Received(part);
      bytes.remove_prefix(part);
      Handle();
    }
    return Sent();
  }

  std::string Sent() {
    std::string sent;
    iovec part;
    while (out_.Front(std::span(&part, 1)) == 1) {
      sent.append(static_cast<const char*>(part.iov_base), part.iov_len);
      out_.Consume(part.iov_len);
    }
    return sent;
  }

 private:
  Outbox out_;  // before the session, which greets

 public:
  Session session;
  bool ended = false, wants_tls = false;
  bool try_first = true;  // as a connection does

 private:
  void Handle() {
    while (true) {
      switch (session.Next()) {
        case Session::Event::kMore: return;
        case Session::Event::kRequest: {
          const Export& of = *session.chosen();
          Request& request = session.request();
          if (!try_first || !TryAnswer(of, request, out_)) Answer(of, request, out_, {});
          break;
        }
        case Session::Event::kStartTls:
          wants_tls = true;
          session.TlsStarted();
          break;
        case Session::Event::kEnd: ended = true; return;
      }
    }
  }
};

// Takes structures from the front of what a server sent.
class Sent {
 public:
  explicit Sent(std::string bytes) : bytes_(std::move(bytes)) {}

  template <class T>
  T Take() {
    auto value = LoadAt<T>(AsBytes(std::string_view(bytes_)), at_);
    CHECK(value.has_value());
    at_ += sizeof(T);
    return *value;
  }
  std::string Take(size_t size) {
    CHECK(bytes_.size() - at_ >= size);
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }
  bool empty() const { return at_ == bytes_.size(); }

 private:
  std::string bytes_;
  size_t at_ = 0;
};

}  // namespace platter::nbd
