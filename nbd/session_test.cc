// The protocol, byte by byte: what each message is answered with, and that it does not matter in
// which pieces messages arrive.
#include "nbd/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/engine/engine.h"
#include "nbd/session_testing.h"

namespace platter::nbd {
namespace {

constexpr uint64_t kSize = 8 * kMiB;
const std::string kFixed = Raw(ClientFlags{kFixedNewstyle | kNoZeroes});

class SessionTest : public testing::Test {
 protected:
  SessionTest() : disk_(MemoryDisk("qcow2", kSize)) {
    exports_.Add("disk", disk_);
    exports_.Add("other", MemoryDisk("raw", kMiB), false);
  }

  void Fill(uint64_t at, size_t size, char with) {
    std::string bytes(size, with);
    ASSERT_TRUE(Write(*disk_, at, AsBytes(std::string_view(bytes))).has_value());
  }

  // A session in transmission, its handshake taken.
  std::unique_ptr<Driven> Enter(const std::string& options = "", const std::string& name = "disk") {
    auto driven = std::make_unique<Driven>(exports_);
    driven->Feed(kFixed + options + GoBytes(name));
    EXPECT_TRUE(driven->session.transmitting());
    return driven;
  }

  // The reply to one option after client flags and `before`.
  Sent OptionReplies(const std::string& option, const std::string& before = "") {
    Driven driven(exports_);
    driven.Feed(kFixed + before);
    return Sent(driven.Feed(option));
  }

  std::shared_ptr<Disk> disk_;
  TestExports exports_;
};

const std::string kStructured = OptionBytes(kOptStructuredReply);
const std::string kExtended = OptionBytes(kOptExtendedHeaders);

void ExpectOptionReply(Sent& sent, uint32_t option, uint32_t type) {
  auto header = sent.Take<OptionReplyHeader>();
  EXPECT_EQ(header.magic, kOptionReplyMagic);
  EXPECT_EQ(header.option, option);
  EXPECT_EQ(header.type, type);
  if ((type & kRepErrorBit) != 0) sent.Take(header.length);
}

void ExpectSimple(Sent& sent, uint64_t cookie, uint32_t error) {
  auto reply = sent.Take<SimpleReply>();
  EXPECT_EQ(reply.magic, kSimpleReplyMagic);
  EXPECT_EQ(reply.cookie, cookie);
  EXPECT_EQ(reply.error, error);
}

// Takes an error chunk; returns the error.
uint32_t TakeError(Sent& sent, uint64_t cookie) {
  auto reply = sent.Take<StructuredReply>();
  EXPECT_EQ(reply.magic, kStructuredReplyMagic);
  EXPECT_EQ(reply.cookie, cookie);
  EXPECT_EQ(reply.type, kChunkError);
  EXPECT_EQ(reply.flags, kReplyDone);
  auto error = sent.Take<ErrorChunk>();
  EXPECT_EQ(reply.length, sizeof error + error.message_length);
  sent.Take(error.message_length);
  return error.error;
}

TEST_F(SessionTest, GreetsAndServesTheOldestNewstyleClient) {
  Driven driven(exports_);
  Sent greeting(driven.Sent());
  auto hello = greeting.Take<Greeting>();
  EXPECT_EQ(hello.magic, kGreetingMagic);
  EXPECT_EQ(hello.option_magic, kOptionMagic);
  EXPECT_EQ(hello.flags, kFixedNewstyle | kNoZeroes);

  Sent sent(driven.Feed(Raw(ClientFlags{0u}) + OptionBytes(kOptExportName, "disk")));
  auto reply = sent.Take<ExportNameReply>();
  EXPECT_EQ(reply.size, kSize);
  EXPECT_EQ(reply.flags & (kHasFlags | kReadOnly | kSendDf | kCanMultiConn),
            kHasFlags | kCanMultiConn);
  EXPECT_EQ(sent.Take(kExportNameZeroes), std::string(kExportNameZeroes, '\0'));
  EXPECT_TRUE(sent.empty());

  Sent read(driven.Feed(RequestBytes(kCmdRead, 7, 100, 5)));
  ExpectSimple(read, 7, 0);
  EXPECT_EQ(read.Take(5), std::string(5, '\0'));
  EXPECT_TRUE(read.empty());
}

TEST_F(SessionTest, WhatCannotBeRefusedEndsTheSession) {
  for (const std::string& bytes :
       {Raw(ClientFlags{4u}), kFixed + OptionBytes(kOptExportName, "nothing"),
        kFixed + std::string(16, 'x'), kFixed + kExtended + OptionBytes(kOptExportName, "disk"),
        kFixed + Raw(OptionHeader{kOptionMagic, kOptExportName, 1u << 20}),
        kFixed + Raw(OptionHeader{kOptionMagic, kOptList, 64u << 20})}) {
    Driven driven(exports_);
    driven.Feed(bytes);
    EXPECT_TRUE(driven.ended) << testing::PrintToString(bytes);
    EXPECT_NE(driven.session.failure(), "");
  }
}

TEST_F(SessionTest, InfoAndGoDescribeTheExport) {
  Driven driven(exports_);
  driven.Feed(kFixed);
  const std::vector<uint16_t> wanted = {kInfoName, kInfoDescription, kInfoBlockSize, 99};
  for (uint32_t option : {kOptInfo, kOptGo}) {
    Sent sent(driven.Feed(GoBytes("", wanted, option)));
    ExpectOptionReply(sent, option, kRepInfo);
    auto info = sent.Take<InfoExport>();
    EXPECT_EQ(info.type, kInfoExport);
    EXPECT_EQ(info.size, kSize);
    EXPECT_EQ(info.flags & kReadOnly, 0);
    ExpectOptionReply(sent, option, kRepInfo);
    EXPECT_EQ(sent.Take<be16>(), kInfoName);
    EXPECT_EQ(sent.Take(4), "disk");
    ExpectOptionReply(sent, option, kRepInfo);
    EXPECT_EQ(sent.Take<be16>(), kInfoDescription);
    EXPECT_EQ(sent.Take(18), "a disk called disk");
    ExpectOptionReply(sent, option, kRepInfo);
    auto block = sent.Take<InfoBlockSize>();
    EXPECT_EQ(block.minimum, 1u);
    EXPECT_EQ(block.most_payload, kMostPayload);
    ExpectOptionReply(sent, option, kRepAck);
    EXPECT_TRUE(sent.empty());
    EXPECT_EQ(driven.session.transmitting(), option == kOptGo);
  }
}

TEST_F(SessionTest, RefusesOptionsThatMakeNoSense) {
  const std::string truncated = OptionBytes(kOptGo, StringBytes("disk"));
  struct {
    std::string bytes;
    uint32_t option, error;
  } cases[] = {
      {OptionBytes(77), 77, kRepErrUnsupported},
      {OptionBytes(kOptList, "x"), kOptList, kRepErrInvalid},
      {OptionBytes(kOptStructuredReply, "x"), kOptStructuredReply, kRepErrInvalid},
      {GoBytes("nothing"), kOptGo, kRepErrUnknown},
      {truncated, kOptGo, kRepErrInvalid},
      {OptionBytes(kOptGo, Raw(be32(4096)) + "disk" + Raw(be16(0))), kOptGo, kRepErrInvalid},
      {OptionBytes(kOptGo, StringBytes("disk") + Raw(be16(2)) + Raw(be16(0))), kOptGo,
       kRepErrInvalid},
      {OptionBytes(kOptStartTls), kOptStartTls, kRepErrPolicy},
      {ContextBytes(kOptSetMetaContext, "disk", {"base:allocation"}), kOptSetMetaContext,
       kRepErrInvalid},
  };
  for (const auto& each : cases) {
    Sent sent = OptionReplies(each.bytes);
    ExpectOptionReply(sent, each.option, each.error);
    EXPECT_TRUE(sent.empty());
  }
}

TEST_F(SessionTest, SkipsAnOptionThatIsTooLong) {
  Driven driven(exports_);
  driven.Feed(kFixed);
  Sent sent(driven.Feed(OptionBytes(kOptGo, std::string(1 << 20, 'x')) + OptionBytes(kOptAbort)));
  ExpectOptionReply(sent, kOptGo, kRepErrTooBig);
  ExpectOptionReply(sent, kOptAbort, kRepAck);
  EXPECT_TRUE(sent.empty());
  EXPECT_TRUE(driven.ended);
  EXPECT_EQ(driven.session.failure(), "");
}

TEST_F(SessionTest, ListsExports) {
  Sent sent = OptionReplies(OptionBytes(kOptList));
  for (const std::string name : {"disk", "other"}) {
    ExpectOptionReply(sent, kOptList, kRepServer);
    EXPECT_EQ(sent.Take<be32>(), name.size());
    EXPECT_EQ(sent.Take(name.size()), name);
    EXPECT_EQ(sent.Take(14 + name.size()), "a disk called " + name);
  }
  ExpectOptionReply(sent, kOptList, kRepAck);
  EXPECT_TRUE(sent.empty());
}

TEST_F(SessionTest, ListsAndSelectsContexts) {
  struct {
    uint32_t option;
    std::vector<std::string> queries;
    std::vector<std::string> found;
  } cases[] = {
      {kOptListMetaContext, {}, {"base:allocation", "qemu:allocation-depth"}},
      {kOptListMetaContext, {"base:"}, {"base:allocation"}},
      {kOptListMetaContext, {"qemu:", "x-other:"}, {"qemu:allocation-depth"}},
      {kOptSetMetaContext, {}, {}},
      {kOptSetMetaContext, {"base:"}, {}},
      {kOptSetMetaContext,
       {"base:allocation", "base:allocation", "base:none"},
       {"base:allocation"}},
  };
  for (const auto& each : cases) {
    Sent sent = OptionReplies(ContextBytes(each.option, "disk", each.queries), kStructured);
    for (const std::string& name : each.found) {
      ExpectOptionReply(sent, each.option, kRepMetaContext);
      sent.Take<be32>();
      EXPECT_EQ(sent.Take(name.size()), name);
    }
    ExpectOptionReply(sent, each.option, kRepAck);
    EXPECT_TRUE(sent.empty());
  }
}

TEST_F(SessionTest, SimpleReadsWritesAndErrors) {
  auto driven = Enter();
  Sent sent(driven->Feed(
      RequestBytes(kCmdWrite, 1, 4096, 5, 0, "hello") + RequestBytes(kCmdRead, 2, 4094, 8) +
      RequestBytes(kCmdFlush, 3, 0, 0) + RequestBytes(kCmdRead, 4, kSize - 1, 2) +
      RequestBytes(kCmdWrite, 5, kSize, 1, 0, "x") + RequestBytes(kCmdRead, 6, 0, 1, kFlagDf) +
      RequestBytes(kCmdRead, 7, 0, 0) + RequestBytes(99, 8, 0, 0) +
      RequestBytes(kCmdBlockStatus, 9, 0, 512) + RequestBytes(kCmdFlush, 10, 1, 0) +
      RequestBytes(kCmdRead, 11, 0, kMostPayload + 1) + RequestBytes(kCmdTrim, 12, 0, kSize) +
      RequestBytes(kCmdRead, 13, 4096, 5)));
  ExpectSimple(sent, 1, 0);
  ExpectSimple(sent, 2, 0);
  EXPECT_EQ(sent.Take(8), std::string("\0\0hello\0", 8));
  ExpectSimple(sent, 3, 0);
  ExpectSimple(sent, 4, kInvalid);
  ExpectSimple(sent, 5, kNoSpaceLeft);
  ExpectSimple(sent, 6, kInvalid);
  ExpectSimple(sent, 7, 0);
  ExpectSimple(sent, 8, kInvalid);
  ExpectSimple(sent, 9, kInvalid);
  ExpectSimple(sent, 10, kInvalid);
  ExpectSimple(sent, 11, kInvalid);
  ExpectSimple(sent, 12, 0);
  ExpectSimple(sent, 13, 0);
  EXPECT_EQ(sent.Take(5), std::string(5, '\0'));
  EXPECT_TRUE(sent.empty());
  EXPECT_FALSE(driven->ended);
}

TEST_F(SessionTest, AReadOnlyExportTakesNoWrites) {
  auto driven = Enter("", "other");
  Sent sent(driven->Feed(RequestBytes(kCmdWrite, 1, 0, 3, 0, "abc") +
                         RequestBytes(kCmdTrim, 2, 0, 512) +
                         RequestBytes(kCmdWriteZeroes, 3, 0, 512) +
                         RequestBytes(kCmdFlush, 4, 0, 0) + RequestBytes(kCmdRead, 5, 0, 3)));
  ExpectSimple(sent, 1, kPermission);
  ExpectSimple(sent, 2, kPermission);
  ExpectSimple(sent, 3, kPermission);
  ExpectSimple(sent, 4, 0);
  ExpectSimple(sent, 5, 0);
  EXPECT_EQ(sent.Take(3), std::string(3, '\0'));
}

TEST_F(SessionTest, StructuredReadsNameHoles) {
  Fill(kMiB, 64 * kKiB, 'a');
  for (bool try_first : {false, true}) {
    auto driven = Enter(kStructured);
    driven->try_first = try_first;
    Sent sent(driven->Feed(RequestBytes(kCmdRead, 1, kMiB - 65536, 3 * 65536)));
    auto hole = sent.Take<StructuredReply>();
    EXPECT_EQ(hole.type, kChunkHole);
    EXPECT_EQ(hole.flags, 0);
    auto first = sent.Take<OffsetHole>();
    EXPECT_EQ(first.offset, kMiB - 65536);
    EXPECT_EQ(first.length, 65536u);
    auto data = sent.Take<StructuredReply>();
    EXPECT_EQ(data.type, kChunkData);
    EXPECT_EQ(data.length, 8u + 65536u);
    EXPECT_EQ(sent.Take<OffsetData>().offset, kMiB);
    EXPECT_EQ(sent.Take(65536), std::string(65536, 'a'));
    hole = sent.Take<StructuredReply>();
    EXPECT_EQ(hole.type, kChunkHole);
    EXPECT_EQ(hole.flags, kReplyDone);
    sent.Take<OffsetHole>();
    EXPECT_TRUE(sent.empty());

    Sent whole(driven->Feed(RequestBytes(kCmdRead, 2, kMiB - 65536, 2 * 65536, kFlagDf)));
    data = whole.Take<StructuredReply>();
    EXPECT_EQ(data.type, kChunkData);
    EXPECT_EQ(data.flags, kReplyDone);
    EXPECT_EQ(whole.Take<OffsetData>().offset, kMiB - 65536);
    EXPECT_EQ(whole.Take(2 * 65536), std::string(65536, '\0') + std::string(65536, 'a'));
    EXPECT_TRUE(whole.empty());
  }
}

TEST_F(SessionTest, ManySmallRunsBecomeDataInTheEnd) {
  // Every other cluster holds data: more runs than a reply has chunks for.
  for (uint64_t at = 0; at < kSize; at += 128 * kKiB) Fill(at, 64 * kKiB, 'b');
  auto driven = Enter(kStructured);
  Sent sent(driven->Feed(RequestBytes(kCmdRead, 1, 0, kSize)));
  std::string disk(kSize, 'x');
  bool done = false;
  while (!done) {
    auto reply = sent.Take<StructuredReply>();
    done = reply.flags == kReplyDone;
    if (reply.type == kChunkHole) {
      auto hole = sent.Take<OffsetHole>();
      disk.replace(hole.offset, hole.length, hole.length, '\0');
    } else {
      ASSERT_EQ(reply.type, kChunkData);
      uint64_t offset = sent.Take<OffsetData>().offset;
      disk.replace(offset, reply.length - 8, sent.Take(reply.length - 8));
    }
  }
  EXPECT_TRUE(sent.empty());
  for (uint64_t at = 0; at < kSize; at += 64 * kKiB) {
    ASSERT_EQ(disk.substr(at, 64 * kKiB), std::string(64 * kKiB, at % (128 * kKiB) ? '\0' : 'b'));
  }
}

TEST_F(SessionTest, StructuredErrorsAreChunks) {
  auto driven = Enter(kStructured);
  Sent sent(driven->Feed(
      RequestBytes(kCmdRead, 1, kSize, 1) + RequestBytes(kCmdRead, 2, 0, 1, kFlagReqOne) +
      RequestBytes(kCmdRead, 3, 0, kMostPayload + 1) + RequestBytes(kCmdRead, 4, 0, 0)));
  EXPECT_EQ(TakeError(sent, 1), kInvalid);
  EXPECT_EQ(TakeError(sent, 2), kInvalid);
  EXPECT_EQ(TakeError(sent, 3), kInvalid);  // inside comes before how much: 8 MiB
  auto none = sent.Take<StructuredReply>();
  EXPECT_EQ(none.type, kChunkNone);
  EXPECT_EQ(none.flags, kReplyDone);
  EXPECT_TRUE(sent.empty());
}

TEST_F(SessionTest, BlockStatusSaysWhatIsAllocated) {
  Fill(kMiB, 64 * kKiB, 'a');
  auto driven = Enter(kStructured + ContextBytes(kOptSetMetaContext, "disk",
                                                 {"base:allocation", "qemu:allocation-depth"}));
  Sent sent(driven->Feed(RequestBytes(kCmdBlockStatus, 1, 0, 4 << 20)));
  for (uint32_t context : {0u, 1u}) {
    auto reply = sent.Take<StructuredReply>();
    EXPECT_EQ(reply.type, kChunkStatus);
    EXPECT_EQ(reply.flags, context == 1 ? kReplyDone : 0);
    EXPECT_EQ(reply.length, 4u + 3 * 8);
    EXPECT_EQ(sent.Take<StatusHeader>().context, context);
    const uint32_t empty = context == 0 ? kStateHole | kStateZero : 0, there = context;
    for (auto [length, status] : {std::pair<uint64_t, uint32_t>{kMiB, empty},
                                  {64 * kKiB, there},
                                  {3 * kMiB - 64 * kKiB, empty}}) {
      auto run = sent.Take<StatusDescriptor>();
      EXPECT_EQ(run.length, length);
      EXPECT_EQ(run.status, status);
    }
  }
  EXPECT_TRUE(sent.empty());

  Sent one(driven->Feed(RequestBytes(kCmdBlockStatus, 2, kMiB, 128 * kKiB, kFlagReqOne)));
  EXPECT_EQ(one.Take<StructuredReply>().length, 4u + 8);
  one.Take<StatusHeader>();
  EXPECT_EQ(one.Take<StatusDescriptor>().length, 64 * kKiB);
}

// Marks of which only a part is looked at, at a time.
TEST_F(SessionTest, BlockStatusSaysWhatIsMarked) {
  Export& marked = exports_.Add("marked", disk_);
  marked.window = {kMiB, 4 * kMiB};
  auto visit = [](Range within, const std::function<bool(Range)>& found) -> Result<uint64_t> {
    const Range looked{within.offset, std::min(within.length, 2 * kMiB)};
    for (Range mark : {Range{kMiB, 4096}, Range{2 * kMiB, kMiB}}) {
      const Range part = mark.Intersect(looked);
      if (!part.empty() && !found(part)) return part.end();
    }
    return looked.end();
  };
  marked.contexts = {{MetaContext::kMarked, "x:marked", visit}};
  auto driven =
      Enter(kStructured + ContextBytes(kOptSetMetaContext, "marked", {"x:marked"}), "marked");
  auto runs = [&](uint64_t at, uint16_t flags) {
    Sent sent(driven->Feed(RequestBytes(kCmdBlockStatus, 1, at, (4 << 20) - at, flags)));
    const size_t count = (sent.Take<StructuredReply>().length - 4) / sizeof(StatusDescriptor);
    sent.Take<StatusHeader>();
    std::vector<std::pair<uint64_t, uint32_t>> all;
    for (size_t i = 0; i < count; ++i) {
      auto run = sent.Take<StatusDescriptor>();
      all.emplace_back(run.length, run.status);
    }
    EXPECT_TRUE(sent.empty());
    return all;
  };
  using testing::ElementsAre;
  using testing::Pair;
  EXPECT_THAT(runs(0, 0), ElementsAre(Pair(4096, kStateMarked), Pair(kMiB - 4096, 0),
                                      Pair(kMiB, kStateMarked)));
  EXPECT_THAT(runs(4096, 0),
              ElementsAre(Pair(kMiB - 4096, 0), Pair(kMiB, kStateMarked), Pair(4096, 0)));
  EXPECT_THAT(runs(0, kFlagReqOne), ElementsAre(Pair(4096, kStateMarked)));
}

TEST_F(SessionTest, ContextsOfAnotherExportDoNotCount) {
  auto driven = Enter(kStructured + ContextBytes(kOptSetMetaContext, "other", {"base:allocation"}));
  Sent sent(driven->Feed(RequestBytes(kCmdBlockStatus, 1, 0, 512)));
  EXPECT_EQ(TakeError(sent, 1), kInvalid);
}

TEST_F(SessionTest, ZeroesAndTrim) {
  Fill(0, kMiB, 'z');
  auto driven = Enter();
  Sent sent(driven->Feed(RequestBytes(kCmdWriteZeroes, 1, 100, 200 * 1024) +
                         RequestBytes(kCmdRead, 2, 99, 3) +
                         RequestBytes(kCmdWriteZeroes, 3, 0, 65536, kFlagFastZero | kFlagNoHole) +
                         RequestBytes(kCmdWriteZeroes, 4, 512 * 1024, 65536, kFlagFastZero) +
                         RequestBytes(kCmdRead, 5, 512 * 1024 - 1, 2)));
  ExpectSimple(sent, 1, 0);
  ExpectSimple(sent, 2, 0);
  EXPECT_EQ(sent.Take(3), std::string("z\0\0", 3));
  ExpectSimple(sent, 3, kNotSupported);
  ExpectSimple(sent, 4, 0);
  ExpectSimple(sent, 5, 0);
  EXPECT_EQ(sent.Take(2), std::string("z\0", 2));
}

TEST_F(SessionTest, ExtendedHeaders) {
  Fill(0, kMiB, 'e');
  auto driven = Enter(kExtended + ContextBytes(kOptSetMetaContext, "disk",
                                               {"base:allocation", "qemu:allocation-depth"}));
  auto take = [](Sent& sent, uint64_t cookie, uint64_t offset, uint16_t type) {
    auto reply = sent.Take<ExtendedReply>();
    EXPECT_EQ(reply.magic, kExtendedReplyMagic);
    EXPECT_EQ(reply.cookie, cookie);
    EXPECT_EQ(reply.offset, offset);
    EXPECT_EQ(reply.type, type);
    return reply;
  };
  Sent sent(driven->Feed(ExtendedBytes(kCmdWrite, 1, 10, 5, kFlagPayloadLen, "hello") +
                         ExtendedBytes(kCmdRead, 2, 9, 7) + ExtendedBytes(kCmdWrite, 3, 0, 5) +
                         ExtendedBytes(kCmdRead, 4, 0, 4, kFlagPayloadLen, "what") +
                         ExtendedBytes(kCmdWriteZeroes, 5, 0, kSize)));
  EXPECT_EQ(take(sent, 1, 10, kChunkNone).flags, kReplyDone);
  EXPECT_EQ(take(sent, 2, 9, kChunkData).length, 8u + 7);
  EXPECT_EQ(sent.Take<OffsetData>().offset, 9u);
  EXPECT_EQ(sent.Take(7), "ehelloe");
  sent.Take(take(sent, 3, 0, kChunkError).length);
  sent.Take(take(sent, 4, 0, kChunkError).length);
  take(sent, 5, 0, kChunkNone);
  EXPECT_TRUE(sent.empty());

  auto ids = [](uint64_t length, std::vector<uint32_t> contexts) {
    std::string payload = Raw(BlockStatusPayload{length});
    for (uint32_t id : contexts) payload += Raw(be32(id));
    return payload;
  };
  auto ask = [&](const std::string& payload) {
    return Sent(driven->Feed(
        ExtendedBytes(kCmdBlockStatus, 6, 0, payload.size(), kFlagPayloadLen, payload)));
  };
  Sent one = ask(ids(kSize, {1}));
  EXPECT_EQ(take(one, 6, 0, kChunkStatus64).length, sizeof(StatusHeader64) + 16);
  auto header = one.Take<StatusHeader64>();
  EXPECT_EQ(header.context, 1u);
  EXPECT_EQ(header.count, 1u);
  EXPECT_EQ(one.Take<StatusDescriptor64>().length, kSize);
  EXPECT_TRUE(one.empty());
  for (const std::string& bad : {ids(kSize, {1, 1}), ids(kSize, {7}), ids(kSize, {}),
                                 ids(kSize + 1, {1}), ids(0, {1}), ids(512, {0, 1, 0})}) {
    Sent refused = ask(bad);
    refused.Take(take(refused, 6, 0, kChunkError).length);
    EXPECT_TRUE(refused.empty());
  }
}

// --- Resizing -----------------------------------------------------------------------------------

uint16_t FlagsOf(Sent sent) {
  EXPECT_EQ(sent.Take<OptionReplyHeader>().type, kRepInfo);
  return sent.Take<InfoExport>().flags;
}

TEST_F(SessionTest, ResizingIsAgreedOnlyWithWhoAsks) {
  for (uint32_t option : {kOptInfo, kOptGo}) {
    EXPECT_FALSE(FlagsOf(OptionReplies(GoBytes("disk", {}, option))) & kSendResize);
    EXPECT_TRUE(FlagsOf(OptionReplies(GoBytes("disk", {kInfoResize}, option))) & kSendResize);
    EXPECT_FALSE(FlagsOf(OptionReplies(GoBytes("other", {kInfoResize}, option))) & kSendResize);
  }
  Sent old = OptionReplies(OptionBytes(kOptExportName, "disk"));
  EXPECT_FALSE(old.Take<ExportNameReply>().flags & kSendResize);
  // INFO asks, and GO decides.
  for (const std::string& options : {std::string(), GoBytes("disk", {kInfoResize}, kOptInfo)}) {
    auto driven = Enter(options);
    Sent sent(driven->Feed(RequestBytes(kCmdResize, 1, 2 * kSize, 0)));
    ExpectSimple(sent, 1, kInvalid);
    EXPECT_EQ(disk_->info().size, kSize);
  }
  Driven reader(exports_);
  reader.Feed(kFixed + GoBytes("other", {kInfoResize}));
  Sent sent(reader.Feed(RequestBytes(kCmdResize, 1, 2 * kSize, 0)));
  ExpectSimple(sent, 1, kInvalid);
}

TEST_F(SessionTest, ResizingMovesTheEndForEverybody) {
  auto other = Enter();
  Driven driven(exports_);
  driven.Feed(kFixed + GoBytes("disk", {kInfoResize}));
  Sent grown(driven.Feed(RequestBytes(kCmdWrite, 1, kSize, 3, 0, "abc") +
                         RequestBytes(kCmdResize, 2, kSize + 4096, 0, kFlagFua) +
                         RequestBytes(kCmdWrite, 3, kSize, 3, 0, "abc") +
                         RequestBytes(kCmdRead, 4, kSize + 4096, 1)));
  ExpectSimple(grown, 1, kNoSpaceLeft);
  ExpectSimple(grown, 2, 0);
  ExpectSimple(grown, 3, 0);
  ExpectSimple(grown, 4, kInvalid);
  EXPECT_TRUE(grown.empty());
  Sent seen(other->Feed(RequestBytes(kCmdRead, 1, kSize - 1, 5)));
  ExpectSimple(seen, 1, 0);
  EXPECT_EQ(seen.Take(5), std::string("\0abc\0", 5));
  Sent info = OptionReplies(GoBytes("disk", {}, kOptInfo));
  info.Take<OptionReplyHeader>();
  EXPECT_EQ(info.Take<InfoExport>().size, kSize + 4096);

  // What is gone is told from what never was.
  Sent shrunk(
      driven.Feed(RequestBytes(kCmdResize, 5, kMiB, 77) + RequestBytes(kCmdRead, 6, kMiB - 1, 2) +
                  RequestBytes(kCmdRead, 7, kSize + 4095, 2) +
                  RequestBytes(kCmdResize, 8, kSize, 0) + RequestBytes(kCmdRead, 9, kSize - 3, 3)));
  ExpectSimple(shrunk, 5, 0);
  ExpectSimple(shrunk, 6, kNoSpaceLeft);
  ExpectSimple(shrunk, 7, kInvalid);
  ExpectSimple(shrunk, 8, 0);
  ExpectSimple(shrunk, 9, 0);
  EXPECT_EQ(shrunk.Take(3), std::string(3, '\0'));
  EXPECT_TRUE(shrunk.empty());
}

TEST_F(SessionTest, SizesThatCannotBeLeaveTheDiskAsItIs) {
  Export& picky = exports_.Add("picky", disk_);
  picky.resizable = std::make_unique<ResizableSize>(
      disk_, [](uint64_t) -> Result<> { return Fail(Code::kRefused, "a partition ends there"); });
  struct {
    std::string name;
    uint64_t size;
    uint32_t error;
  } cases[] = {{"disk", 0, kPermission},
               {"disk", kSize + 1, kInvalid},  // of a qcow2: sectors
               {"disk", UINT64_MAX - 511, kInvalid},
               {"picky", kMiB, kPermission}};
  for (const auto& each : cases) {
    Driven driven(exports_);
    driven.Feed(kFixed + kExtended + GoBytes(each.name, {kInfoResize}));
    Sent sent(driven.Feed(ExtendedBytes(kCmdResize, 1, each.size, 0)));
    auto reply = sent.Take<ExtendedReply>();
    EXPECT_EQ(reply.type, kChunkError);
    EXPECT_EQ(reply.offset, each.size);
    EXPECT_EQ(sent.Take<ErrorChunk>().error, each.error) << each.name << " " << each.size;
    EXPECT_EQ(disk_->info().size, kSize);
    EXPECT_EQ(driven.session.chosen()->size(), kSize);
  }
}

TEST_F(SessionTest, APayloadThatIsTooLargeEndsTheSession) {
  auto driven = Enter();
  driven->Feed(RequestBytes(kCmdWrite, 1, 0, kMostPayload + 1));
  EXPECT_TRUE(driven->ended);
}

TEST_F(SessionTest, DisconnectEndsIt) {
  auto driven = Enter();
  EXPECT_EQ(driven->Feed(RequestBytes(kCmdDisconnect, 1, 0, 0)), "");
  EXPECT_TRUE(driven->ended);
  EXPECT_EQ(driven->session.failure(), "");
}

TEST_F(SessionTest, RequiredTlsLetsNothingElsePass) {
  const SessionOptions required{.tls = TlsPolicy::kRequired};
  Driven driven(exports_, required);
  driven.Feed(kFixed);
  for (const std::string& option :
       {GoBytes("disk"), GoBytes("nothing"), OptionBytes(kOptList), kStructured, OptionBytes(77)}) {
    Sent sent(driven.Feed(option));
    auto header = sent.Take<OptionReplyHeader>();
    EXPECT_EQ(header.type, kRepErrTlsRequired);
  }
  Sent sent(driven.Feed(OptionBytes(kOptStartTls)));
  ExpectOptionReply(sent, kOptStartTls, kRepAck);
  EXPECT_TRUE(driven.wants_tls);
  sent = Sent(driven.Feed(OptionBytes(kOptStartTls)));
  ExpectOptionReply(sent, kOptStartTls, kRepErrInvalid);
  driven.Feed(GoBytes("disk"));
  EXPECT_TRUE(driven.session.transmitting());

  Driven plain(exports_, required);
  plain.Feed(kFixed + OptionBytes(kOptExportName, "disk"));
  EXPECT_TRUE(plain.ended);
}

TEST_F(SessionTest, TlsBeginsAnew) {
  Driven driven(exports_, {.tls = TlsPolicy::kOffered});
  driven.Feed(kFixed + kStructured);
  driven.Feed(OptionBytes(kOptStartTls));
  ASSERT_TRUE(driven.wants_tls);
  driven.Feed(GoBytes("disk"));
  Sent sent(driven.Feed(RequestBytes(kCmdRead, 1, 0, 1)));
  ExpectSimple(sent, 1, 0);
}

TEST_F(SessionTest, BytesBetweenStartTlsAndTlsEndTheSession) {
  Driven driven(exports_, {.tls = TlsPolicy::kOffered});
  driven.Feed(kFixed + OptionBytes(kOptStartTls) + OptionBytes(kOptList));
  EXPECT_FALSE(driven.wants_tls);
  EXPECT_TRUE(driven.ended);
}

// One conversation with a bit of everything, in pieces of every kind.
TEST_F(SessionTest, PiecesDoNotMatter) {
  const std::string large(300 * 1024, 'L'), small(40 * 1024, 'S');
  const std::string conversation =
      kFixed + OptionBytes(kOptList) + OptionBytes(77, std::string(100'000, 'u')) + kStructured +
      ContextBytes(kOptSetMetaContext, "disk", {"base:allocation"}) + GoBytes("disk") +
      RequestBytes(kCmdWrite, 1, 1000, static_cast<uint32_t>(large.size()), 0, large) +
      RequestBytes(kCmdWrite, 2, 2 * kMiB, static_cast<uint32_t>(small.size()), 0, small) +
      RequestBytes(kCmdWrite, 3, kSize, static_cast<uint32_t>(large.size()), 0, large) +
      RequestBytes(kCmdRead, 4, 0, 400 * 1024) + RequestBytes(kCmdBlockStatus, 5, 0, 8 << 20) +
      RequestBytes(kCmdRead, 6, 2 * kMiB, 50 * 1024) + RequestBytes(kCmdDisconnect, 7, 0, 0);
  std::string expected;
  for (size_t step : {SIZE_MAX, size_t{1}, size_t{3}, size_t{27}, size_t{1000}, size_t{65536}}) {
    TestExports exports;
    exports.Add("disk", MemoryDisk("qcow2", kSize));
    Driven driven(exports);
    std::string sent = driven.Feed(conversation, step);
    EXPECT_TRUE(driven.ended);
    EXPECT_EQ(driven.session.failure(), "");
    if (expected.empty()) expected = sent;
    EXPECT_TRUE(sent == expected) << "in pieces of " << step;
  }
  EXPECT_GT(expected.size(), 340 * kKiB);
}

// A client that goes away after any byte leaves nothing that the next Feed or the end stumbles
// over.
TEST_F(SessionTest, MayEndAfterAnyByte) {
  const std::string conversation = kFixed + kStructured + GoBytes("disk") +
                                   RequestBytes(kCmdWrite, 1, 1000, 600, 0, std::string(600, 'x')) +
                                   RequestBytes(kCmdRead, 2, 0, 2000);
  for (size_t size = 0; size <= conversation.size(); ++size) {
    Driven driven(exports_);
    driven.Feed(conversation.substr(0, size));
    EXPECT_FALSE(driven.ended) << size;
  }
}

}  // namespace
}  // namespace platter::nbd
