// The NBD protocol as it is on the wire: structures and constants, nothing else.
//
// A connection begins with the handshake ("fixed newstyle"): the server greets, the client sends
// options one after the other and the server replies to each, until one of them (EXPORT_NAME or GO)
// chooses an export. What follows is transmission: requests and replies, many in flight, in any
// order, matched by a cookie that the client makes up. How replies look was agreed by options:
//
//   simple       a status, and after a successful READ as many bytes as were asked for
//   structured   chunks, each with its own type and length; READ and BLOCK_STATUS need them
//   extended     the same chunks, with 64-bit lengths in requests and replies
//
// All integers are big-endian and unsigned, lengths and offsets are bytes.
//
// Source: doc/proto.md of NetworkBlockDevice/nbd ("The NBD protocol"); the same file in its
// branches extension-ext-header and extension-resize. The section is named at each structure.
#pragma once

#include <cstdint>

#include "base/endian.h"

namespace platter::nbd {

constexpr uint16_t kDefaultPort = 10809;
constexpr uint32_t kMostString = 4096;            // of names and messages ("Conventions")
constexpr uint32_t kMostPayload = 32 << 20;       // that every server takes ("Size constraints")
constexpr uint32_t kMostDescriptors = 1u << 20;   // of one status chunk
constexpr uint32_t kMostUnfragmented = 64 << 10;  // a READ with kFlagDf that must be served

// --- Handshake ("Newstyle negotiation", "Fixed newstyle negotiation") ---------------------------

constexpr uint64_t kGreetingMagic = 0x4e42444d41474943;  // "NBDMAGIC"
constexpr uint64_t kOptionMagic = 0x49484156454f5054;    // "IHAVEOPT"
constexpr uint64_t kOldstyleMagic = 0x0000420281861253;  // in its place: oldstyle, not for us
constexpr uint64_t kOptionReplyMagic = 0x0003e889045565a9;

// "Handshake flags" of the server, "Client flags" of the client: the same bits.
constexpr uint16_t kFixedNewstyle = 1 << 0;
constexpr uint16_t kNoZeroes = 1 << 1;

struct Greeting {
  be64 magic;         // kGreetingMagic
  be64 option_magic;  // kOptionMagic
  be16 flags;
};
static_assert(sizeof(Greeting) == 18);

struct ClientFlags {
  be32 flags;
};
static_assert(sizeof(ClientFlags) == 4);

struct OptionHeader {  // `length` bytes of data follow
  be64 magic;          // kOptionMagic
  be32 option;
  be32 length;
};
static_assert(sizeof(OptionHeader) == 16);

struct OptionReplyHeader {  // `length` bytes of data follow
  be64 magic;               // kOptionReplyMagic
  be32 option;
  be32 type;
  be32 length;
};
static_assert(sizeof(OptionReplyHeader) == 20);

// The answer to kOptExportName: no header; 124 zeros follow unless both sides set kNoZeroes.
struct ExportNameReply {
  be64 size;
  be16 flags;  // transmission flags
};
static_assert(sizeof(ExportNameReply) == 10);
constexpr uint32_t kExportNameZeroes = 124;

// "Option types".
enum Option : uint32_t {
  kOptExportName = 1,
  kOptAbort = 2,
  kOptList = 3,
  kOptStartTls = 5,
  kOptInfo = 6,
  kOptGo = 7,
  kOptStructuredReply = 8,
  kOptListMetaContext = 9,
  kOptSetMetaContext = 10,
  kOptExtendedHeaders = 11,
};

// "Option reply types". Errors may carry a text for the user.
constexpr uint32_t kRepErrorBit = 1u << 31;
enum OptionReply : uint32_t {
  kRepAck = 1,
  kRepServer = 2,       // be32 length of a name, the name, a description
  kRepInfo = 3,         // be16 information type, its payload
  kRepMetaContext = 4,  // be32 id, the name
  kRepErrUnsupported = kRepErrorBit + 1,
  kRepErrPolicy = kRepErrorBit + 2,
  kRepErrInvalid = kRepErrorBit + 3,
  kRepErrPlatform = kRepErrorBit + 4,
  kRepErrTlsRequired = kRepErrorBit + 5,
  kRepErrUnknown = kRepErrorBit + 6,
  kRepErrShutdown = kRepErrorBit + 7,
  kRepErrBlockSizeRequired = kRepErrorBit + 8,
  kRepErrTooBig = kRepErrorBit + 9,
  kRepErrExtendedHeadersRequired = kRepErrorBit + 10,
};

// Information types of kOptInfo, kOptGo and kRepInfo.
enum InfoType : uint16_t {
  kInfoExport = 0,
  kInfoName = 1,         // the name follows
  kInfoDescription = 2,  // the text follows
  kInfoBlockSize = 3,
  // Our own, with a number that others ignore: never sent, only asked for. The client knows
  // kCmdResize, and wants kSendResize to say whether it is there.
  kInfoResize = 0x8008,
};

struct InfoExport {
  be16 type;  // kInfoExport
  be64 size;
  be16 flags;  // transmission flags
};
static_assert(sizeof(InfoExport) == 12);

struct InfoBlockSize {
  be16 type;  // kInfoBlockSize
  be32 minimum;
  be32 preferred;
  be32 most_payload;
};
static_assert(sizeof(InfoBlockSize) == 14);

// "Transmission flags".
enum TransmissionFlag : uint16_t {
  kHasFlags = 1 << 0,
  kReadOnly = 1 << 1,
  kSendFlush = 1 << 2,
  kSendFua = 1 << 3,
  kRotational = 1 << 4,
  kSendTrim = 1 << 5,
  kSendWriteZeroes = 1 << 6,
  kSendDf = 1 << 7,
  kCanMultiConn = 1 << 8,
  kSendResize = 1 << 9,  // extension-resize; only for who asked by kInfoResize
  kSendCache = 1 << 10,
  kSendFastZero = 1 << 11,
  kBlockStatusPayload = 1 << 12,  // extension-ext-header
};

// --- Transmission -------------------------------------------------------------------------------

constexpr uint32_t kRequestMagic = 0x25609513;
constexpr uint32_t kExtendedRequestMagic = 0x21e41c71;
constexpr uint32_t kSimpleReplyMagic = 0x67446698;
constexpr uint32_t kStructuredReplyMagic = 0x668e33ef;
constexpr uint32_t kExtendedReplyMagic = 0x6e8a278c;

// "Request types".
enum Command : uint16_t {
  kCmdRead = 0,
  kCmdWrite = 1,
  kCmdDisconnect = 2,
  kCmdFlush = 3,
  kCmdTrim = 4,
  kCmdCache = 5,
  kCmdWriteZeroes = 6,
  kCmdBlockStatus = 7,
  kCmdResize = 8,  // extension-resize: `offset` is the new size
};

// "Command flags".
enum CommandFlag : uint16_t {
  kFlagFua = 1 << 0,
  kFlagNoHole = 1 << 1,
  kFlagDf = 1 << 2,
  kFlagReqOne = 1 << 3,
  kFlagFastZero = 1 << 4,
  kFlagPayloadLen = 1 << 5,  // extension-ext-header: `length` is that of a payload
};

// "Request message". A WRITE's data follows.
struct CompactRequest {
  be32 magic;  // kRequestMagic
  be16 flags;
  be16 command;
  be64 cookie;
  be64 offset;
  be32 length;
};
static_assert(sizeof(CompactRequest) == 28);

// "Request message" of extension-ext-header. With kFlagPayloadLen `length` bytes follow.
struct ExtendedRequest {
  be32 magic;  // kExtendedRequestMagic
  be16 flags;
  be16 command;
  be64 cookie;
  be64 offset;
  be64 length;
};
static_assert(sizeof(ExtendedRequest) == 32);

// A BLOCK_STATUS with kFlagPayloadLen: this, and be32 ids of the contexts that are wanted.
struct BlockStatusPayload {
  be64 length;  // of the range asked about
};
static_assert(sizeof(BlockStatusPayload) == 8);

// "Simple reply message". The data of a successful READ follows.
struct SimpleReply {
  be32 magic;  // kSimpleReplyMagic
  be32 error;
  be64 cookie;
};
static_assert(sizeof(SimpleReply) == 16);

// "Structured reply chunk message". `length` bytes follow.
struct StructuredReply {
  be32 magic;  // kStructuredReplyMagic
  be16 flags;
  be16 type;
  be64 cookie;
  be32 length;
};
static_assert(sizeof(StructuredReply) == 20);

// "Extended reply chunk message" of extension-ext-header. `length` bytes follow.
struct ExtendedReply {
  be32 magic;  // kExtendedReplyMagic
  be16 flags;
  be16 type;
  be64 cookie;
  be64 offset;  // the request's
  be64 length;
};
static_assert(sizeof(ExtendedReply) == 32);

constexpr uint16_t kReplyDone = 1 << 0;  // "Structured reply flags"

// "Structured reply types".
constexpr uint16_t kChunkErrorBit = 1 << 15;
enum ChunkType : uint16_t {
  kChunkNone = 0,
  kChunkData = 1,                          // OffsetData, the data
  kChunkHole = 2,                          // OffsetHole
  kChunkStatus = 5,                        // be32 context id, StatusDescriptors
  kChunkStatus64 = 6,                      // StatusHeader64, StatusDescriptor64s
  kChunkError = kChunkErrorBit + 1,        // ErrorChunk, the message
  kChunkErrorOffset = kChunkErrorBit + 2,  // ErrorChunk, the message, be64 offset
};

struct OffsetData {
  be64 offset;
};
static_assert(sizeof(OffsetData) == 8);

struct OffsetHole {
  be64 offset;
  be32 length;
};
static_assert(sizeof(OffsetHole) == 12);

struct ErrorChunk {
  be32 error;
  be16 message_length;
};
static_assert(sizeof(ErrorChunk) == 6);

struct StatusHeader {
  be32 context;
};
static_assert(sizeof(StatusHeader) == 4);

struct StatusDescriptor {
  be32 length;
  be32 status;
};
static_assert(sizeof(StatusDescriptor) == 8);

struct StatusHeader64 {
  be32 context;
  be32 count;  // of descriptors
};
static_assert(sizeof(StatusHeader64) == 8);

struct StatusDescriptor64 {
  be64 length;
  be64 status;
};
static_assert(sizeof(StatusDescriptor64) == 16);

// Status of the context "base:allocation".
constexpr uint32_t kStateHole = 1 << 0;
constexpr uint32_t kStateZero = 1 << 1;

// Status of the contexts "qemu:dirty-bitmap:NAME" (QEMU's docs/interop/nbd.txt: dirty), and of our
// own "platter:snapshot-diff:NAME".
constexpr uint32_t kStateMarked = 1 << 0;

// "Error values": those of Linux, whatever the system.
enum ErrorValue : uint32_t {
  kPermission = 1,
  kIoError = 5,
  kNoMemory = 12,
  kInvalid = 22,
  kNoSpaceLeft = 28,
  kOverflow = 75,
  kNotSupported = 95,
  kShutdown = 108,
};

}  // namespace platter::nbd
