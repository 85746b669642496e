// The records that JavaScript and the engine exchange; the twin of rdma/src/records.ts (a test compares the numbers,
// line by line, so keep `NAME = value` on one line each).
#pragma once
#include <cstdint>

namespace tartan {

enum Opcode : uint8_t {
  WRITE = 1,
  WRITE_WITH_IMM = 2,
  READ = 3,
  SEND = 4,
  RECV = 5,
  ENCODE = 6,
  VERIFY = 7,
  RECV_WRITE_WITH_IMM = 8,
  SEND_STRIPE = 9,
  SEND_UNIT = 10,
  CANCEL = 11,
  RELEASE_SLOT = 12,
  RECV_DUPLICATE = 13,
  // Not in records.ts: a completion that stands for an engine event, so that events and completions keep their order.
  OPCODE_EVENT = 255,
};

enum Flag : uint8_t {
  SIGNALED = 1,
  DIGEST_INPUTS_WRITE = 2,
  DIGEST_INPUTS_CHECK = 4,
  DIGEST_OUTPUTS_WRITE = 8,
  DIGEST_OUTPUTS_STORE = 16,
};

enum Status : uint8_t {
  SUCCESS = 0,
  LOCAL_PROTECTION_ERROR = 1,
  LENGTH_ERROR = 2,
  FLUSHED = 3,
  REMOTE_ACCESS_ERROR = 4,
  RETRY_EXCEEDED = 5,
  REMOTE_INVALID_REQUEST = 6,
  CHECKSUM_ERROR = 7,
  INVALID_REQUEST = 8,
};

enum Access : uint32_t {
  ACCESS_REMOTE_WRITE = 1,
  ACCESS_REMOTE_READ = 2,
};

struct GatherEntry {
  uint32_t lkey;
  uint32_t offset;
  uint32_t length;
};

// One work request as it lies in the send queue ring. Coding requests reuse words 3 to 11, see records.ts.
struct WorkRequest {
  uint8_t opcode;
  uint8_t flags;
  uint8_t gather_count;
  uint8_t reserved;
  uint32_t qpn;
  uint32_t wr_id;
  union {
    struct {
      uint32_t imm;
      uint32_t rkey;
      uint32_t remote_offset;
      uint32_t zero[2];
      GatherEntry gather[2];
    } rdma;
    struct {
      uint32_t coder;
      uint32_t lkey;
      uint32_t units_offset;
      uint32_t stride;
      uint32_t data_length;
      uint32_t data_headers_offset;
      uint32_t data_header_stride;
      uint32_t parity_headers_offset;
      uint32_t parity_header_stride;
    } encode;
    struct {
      uint32_t coder;
      uint32_t lkey;
      uint32_t header_offset;
      uint32_t header_bytes;
      uint32_t payload_offset;
      uint32_t payload_bytes;
    } verify;
    struct {
      uint32_t lkey;
      uint32_t headers_offset;
      uint32_t units_offset;
      uint32_t stride;
      uint32_t group;
      uint32_t chunk;
      uint32_t units;
      uint32_t address;
      uint32_t port;
    } send_stripe;
    struct {
      uint32_t lkey;
      uint32_t header_offset;
      uint32_t header_bytes;
      uint32_t payload_offset;
      uint32_t payload_bytes;
      uint32_t most_chunk;
      uint32_t address;
      uint32_t port;
    } send_unit;
    uint32_t words[13];
  };
};
static_assert(sizeof(WorkRequest) == 64, "WR_WORDS is 16");

struct Completion {
  uint32_t wr_id;
  uint8_t status;
  uint8_t opcode;
  uint16_t reserved;
  uint32_t qpn;
  uint32_t byte_length;
  uint32_t imm;
  uint32_t detail;
  uint32_t extra;
  uint32_t zero;
};
static_assert(sizeof(Completion) == 32, "CQE_WORDS is 8");

}  // namespace tartan
