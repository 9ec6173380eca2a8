// Servers that break the protocol: each reply here is one that must not pass for an answer.
#include <gtest/gtest.h>

#include "nbd/client/canned_stream_testing.h"
#include "nbd/client/connection.h"

namespace platter::nbd {
namespace {

constexpr uint64_t kCookie = 1;  // of a connection's first request

class Script {
 public:
  template <class T>
  Script& Add(const T& value) {
    ConstBytes bytes = AsBytes(value);
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  Script& Text(std::string_view text) {
    ConstBytes bytes = AsBytes(text);
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  Script& Chunk(uint16_t type, uint16_t flags, uint32_t length, uint64_t cookie = kCookie) {
    StructuredReply reply;
    reply.magic = kStructuredReplyMagic;
    reply.flags = flags;
    reply.type = type;
    reply.cookie = cookie;
    reply.length = length;
    return Add(reply);
  }
  Script& Data(uint64_t offset, std::string_view text, uint16_t flags = 0) {
    Chunk(kChunkData, flags, static_cast<uint32_t>(8 + text.size()));
    return Add(be64(offset)).Text(text);
  }
  Script& Hole(uint64_t offset, uint32_t length, uint16_t flags = 0) {
    return Chunk(kChunkHole, flags, 12).Add(be64(offset)).Add(be32(length));
  }
  ConstBytes bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

struct Outcome {
  bool answered;
  uint32_t error;
  std::string text, data, message;
  std::vector<StatusRun> runs;
};

// READ or BLOCK_STATUS of bytes 100 to 108.
Outcome Ask(const Script& script, Command command = kCmdRead, bool structured = true) {
  Opened opened;
  opened.stream = std::make_unique<CannedStream>(script.bytes());
  opened.agreed.size = 1000;
  opened.agreed.structured = structured;
  opened.agreed.allocation = 7;
  ClientConnection connection(std::move(opened));
  std::string data(8, '?');
  const iovec one{data.data(), data.size()};
  Outcome outcome{};
  Call call;
  call.command = command;
  call.range = {100, 8};
  if (command == kCmdRead) call.into = {&one, 1};
  call.runs = &outcome.runs;
  outcome.answered = connection.Perform(call);
  outcome.error = call.error;
  outcome.message = call.message;
  outcome.data = data;
  if (auto problem = connection.problem()) outcome.text = problem->text();
  return outcome;
}

void ExpectBroken(const Script& script, std::string_view words, Command command = kCmdRead,
                  bool structured = true) {
  const Outcome outcome = Ask(script, command, structured);
  EXPECT_FALSE(outcome.answered);
  EXPECT_NE(outcome.text.find(words), std::string::npos) << outcome.text;
}

TEST(HostileServerTest, WhatIsRightPasses) {
  Outcome outcome = Ask(Script().Data(104, "efgh").Hole(102, 2).Data(100, "ab", kReplyDone));
  EXPECT_TRUE(outcome.answered) << outcome.text;
  EXPECT_EQ(outcome.data, std::string("ab\0\0efgh", 8));
  outcome =
      Ask(Script().Add(be32(kSimpleReplyMagic)).Add(be32(0)).Add(be64(kCookie)).Text("abcdefgh"),
          kCmdRead, false);
  EXPECT_EQ(outcome.data, "abcdefgh");
}

TEST(HostileServerTest, ErrorsAreTold) {
  Script script;
  script.Chunk(kChunkErrorOffset, 0, 6 + 3 + 8).Add(be32(kIoError)).Add(be16(3)).Text("b\x1b!");
  script.Add(be64(100)).Chunk(kChunkNone, kReplyDone, 0);
  const Outcome outcome = Ask(script);
  EXPECT_TRUE(outcome.answered);
  EXPECT_EQ(outcome.error, kIoError);
  EXPECT_EQ(outcome.message, "b\\x1b!");
}

TEST(HostileServerTest, BytesThatWereNotAskedFor) {
  ExpectBroken(Script().Data(99, "x", kReplyDone), "not asked for");
  ExpectBroken(Script().Data(107, "xy", kReplyDone), "not asked for");
  ExpectBroken(Script().Data(UINT64_MAX, "x", kReplyDone), "not asked for");
  ExpectBroken(Script().Hole(100, 9, kReplyDone), "not asked for");
  ExpectBroken(Script().Hole(100, 0, kReplyDone), "not asked for");
  ExpectBroken(Script().Chunk(kChunkData, kReplyDone, 8).Add(be64(100)), "too short");
  ExpectBroken(Script().Chunk(kChunkData, kReplyDone, UINT32_MAX).Add(be64(100)), "not asked for");
  ExpectBroken(Script().Data(100, "x"), "not asked for", kCmdBlockStatus);
}

TEST(HostileServerTest, BytesThatAreMissingOrComeTwice) {
  ExpectBroken(Script().Data(100, "abcdefg", kReplyDone), "lacks a part");
  ExpectBroken(Script().Chunk(kChunkNone, kReplyDone, 0), "lacks a part");
  ExpectBroken(Script().Data(100, "abcd").Data(103, "defgh", kReplyDone), "not asked for");
  ExpectBroken(Script().Data(100, "abcd").Data(100, "abcd", kReplyDone), "not asked for");
  ExpectBroken(Script().Data(100, "ab").Data(104, "efgh", kReplyDone), "lacks a part");
}

TEST(HostileServerTest, RepliesThatAreNone) {
  ExpectBroken(Script().Text("garbage!"), "a reply begins with");
  ExpectBroken(Script().Chunk(kChunkNone, kReplyDone, 0, 99), "not asked");
  ExpectBroken(Script().Chunk(kChunkNone, kReplyDone, 5).Text("abcde"), "empty chunk");
  ExpectBroken(Script().Chunk(77, kReplyDone, 0), "chunk of type 77");
  ExpectBroken(Script().Add(be32(kSimpleReplyMagic)).Add(be32(0)).Add(be64(kCookie)),
               "simple reply");
  ExpectBroken(Script().Chunk(kChunkNone, kReplyDone, 0), "begins with", kCmdRead, false);
  ExpectBroken(Script(), "at their end");
  ExpectBroken(Script().Chunk(kChunkError, kReplyDone, 6).Add(be32(5)).Add(be16(9)), "too long");
  ExpectBroken(Script().Chunk(kChunkError, kReplyDone, 5).Text("abcde"), "without its number");
}

TEST(HostileServerTest, BlockStatus) {
  auto status = [](uint32_t length) {
    return Script().Chunk(kChunkStatus, kReplyDone, length).Add(be32(7));
  };
  Outcome outcome =
      Ask(status(20).Add(be32(3)).Add(be32(3)).Add(be32(99)).Add(be32(0)), kCmdBlockStatus);
  ASSERT_EQ(outcome.runs.size(), 2u) << outcome.text;
  EXPECT_EQ(outcome.runs[0].length, 3u);
  EXPECT_EQ(outcome.runs[1].length, 5u);
  ExpectBroken(status(12).Add(be32(0)).Add(be32(0)), "without bytes", kCmdBlockStatus);
  ExpectBroken(status(4), "wrong length", kCmdBlockStatus);
  ExpectBroken(status(13), "wrong length", kCmdBlockStatus);
  ExpectBroken(status(UINT32_MAX - 3), "wrong length", kCmdBlockStatus);
  ExpectBroken(status(12), "wrong length", kCmdRead);
}

}  // namespace
}  // namespace platter::nbd
