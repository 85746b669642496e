// What two engines say to each other on a stream (a TCP connection, or a Unix socket beside shared memory): a preamble
// each way, then frames. All integers little-endian. Nothing in a frame is believed before it is checked.
//
//   preamble, 32 bytes         0 magic "TARTNRDM" · 8 version u16 · 10 transport u8 · 11…31 zero
//   frame header, 32 bytes     0 type u8 · 1 follow u8 · 2 status u8 · 3 zero u8 · 4 seq u32 · 8 ack u32 · 12 rkey u32
//                              16 offset u32 · 20 imm u32 · 24 length u32 · 28 recvs u32
//
//   type         seq                 payload               meaning of the other fields
//   WRITE        the request's       length bytes          placed at (rkey, offset)
//   WRITE_IMM    the request's       length bytes          the same, then consumes a receive with imm
//   SEND         the request's       length bytes          goes into the next receive
//   READ         the request's       none                  asks for length bytes at (rkey, offset)
//   READ_DATA    of the READ         length bytes          the part at `offset` of the answer
//   ACK          0                   none                  only carries ack
//   NAK          the failing one's   none                  status; the sender closes after it
//   MAP          of the request      none                  shm: asks for the region behind rkey
//   MAP_FD       0                   none, one descriptor  shm: the answer
//   UNMAP        0                   none                  shm: rkey is revoked, drop the mapping
//   PLACED       the request's       none                  shm: WRITE whose bytes the sender has copied itself
//   PLACED_IMM   the request's       none                  shm: WRITE_IMM likewise
//
// `ack` is cumulative and in every frame: how many of the receiver's requests the sender has executed (mod 2^32).
// `recvs`, too, is in every frame: how many receives its sender has ever posted. SEND and WRITE_IMM go out only against
// one not yet used, so that a request never waits at the peer, where later ones (copied already, over shared memory)
// would overtake it and acknowledgements would queue behind it. A peer that sends nevertheless is simply not read from.
// `follow` promises that at least so many frames without payload come right behind this frame('s payload), so that the
// receiver may read their headers together without ever reading payload bytes into a buffer of its own.
#pragma once
#include <cstdint>
#include <cstring>

namespace tartan {

enum FrameType : uint8_t {
  FRAME_WRITE = 1,
  FRAME_WRITE_IMM = 2,
  FRAME_SEND = 3,
  FRAME_READ = 4,
  FRAME_READ_DATA = 5,
  FRAME_ACK = 6,
  FRAME_NAK = 7,
  FRAME_MAP = 8,
  FRAME_MAP_FD = 9,
  FRAME_UNMAP = 10,
  FRAME_PLACED = 11,
  FRAME_PLACED_IMM = 12,
};

struct FrameHeader {
  uint8_t type;
  uint8_t follow;
  uint8_t status;
  uint8_t zero;
  uint32_t seq;
  uint32_t ack;
  uint32_t rkey;
  uint32_t offset;
  uint32_t imm;
  uint32_t length;
  uint32_t recvs;
};
static_assert(sizeof(FrameHeader) == 32);

enum class TransportKind : uint8_t { tcp = 1, shm = 2 };

constexpr uint16_t PROTOCOL_VERSION = 1;

struct Preamble {
  char magic[8];
  uint16_t version;
  uint8_t transport;
  uint8_t zero[21];

  static Preamble make(TransportKind transport) {
    Preamble preamble{};
    memcpy(preamble.magic, "TARTNRDM", 8);
    preamble.version = PROTOCOL_VERSION;
    preamble.transport = static_cast<uint8_t>(transport);
    return preamble;
  }
  bool matches(TransportKind transport) const {
    Preamble expected = make(transport);
    return memcmp(this, &expected, sizeof expected) == 0;
  }
};
static_assert(sizeof(Preamble) == 32);

constexpr uint32_t MAX_FOLLOW = 63;             // staging for MAX_FOLLOW + 1 headers on the receiving side
constexpr uint32_t MAX_OUTSTANDING_READS = 64;  // per queue pair; a peer that asks for more is malformed
constexpr uint32_t READ_CHUNK_BYTES = 1 << 20;

}  // namespace tartan
