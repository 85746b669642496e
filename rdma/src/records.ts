/**
 * The records that JavaScript and a device exchange: work requests (64 bytes) and completions (32 bytes), as
 * little-endian uint32 words in SharedArrayBuffers. rdma/native/records.h holds the same numbers; a test compares them.
 *
 *   work request        WRITE, WRITE_WITH_IMM, READ, SEND, RECV       ENCODE                   VERIFY
 *   word 0              opcode | flags << 8 | gather entries << 16    opcode | flags << 8      opcode
 *   word 1              qpn                                           coding queue's qpn       coding queue's qpn
 *   word 2              wrId                                          wrId                     wrId
 *   word 3              imm                                           coder id                 coder id
 *   word 4              rkey                                          lkey                     lkey
 *   word 5              remote offset                                 units offset             header offset
 *   word 6              0                                             stride                   header bytes
 *   word 7              0                                             data length              payload offset
 *   word 8              lkey of gather entry 0                        data headers offset      payload bytes
 *   word 9              its offset                                    data header stride       0
 *   word 10             its length                                    parity headers offset    0
 *   word 11, 12, 13     gather entry 1                                word 11: their stride    0
 *   word 14, 15         0                                             0                        0
 *
 *   SEND_STRIPE         word 3 lkey · 4 data headers offset · 5 units offset · 6 stride · 7 group · 8 chunk · 9 units
 *                       waited for · 10 IPv4 · 11 port
 *   SEND_UNIT           word 3 lkey · 4 header offset · 5 its bytes · 6 payload offset · 7 its bytes · 8 largest chunk
 *                       · 9 IPv4 · 10 port
 *   CANCEL              word 2 the wrId of the request that is to be given up
 *   RELEASE_SLOT        word 2 the slot; flags 1: its unit is durable
 *
 *   completion          word 0 wrId · 1 status | opcode << 8 · 2 qpn · 3 byte length · 4 imm · 5 detail · 6 extra · 7:
 *                       0
 *   RECV_DUPLICATE      word 0, 4 stripe · 3 counter · 5 unit · 6 map epoch
 */
export const WR_WORDS = 16;
export const CQE_WORDS = 8;

export const Opcode = {
  WRITE: 1,
  WRITE_WITH_IMM: 2,
  READ: 3,
  SEND: 4,
  RECV: 5,
  ENCODE: 6,
  VERIFY: 7,
  RECV_WRITE_WITH_IMM: 8,
  /** Of a packet socket (packets.ts). */
  SEND_STRIPE: 9,
  SEND_UNIT: 10,
  CANCEL: 11,
  RELEASE_SLOT: 12,
  RECV_DUPLICATE: 13,
} as const;

/** Bits of a work request's flags. */
export const Flag = {
  /** Asks for a completion on success. Coding requests and RECV always complete. */
  SIGNALED: 1,
  /** ENCODE: writes payload CRC and summary of the inputs into their headers, then seals them. */
  DIGEST_INPUTS_WRITE: 2,
  /** ENCODE: compares the inputs' payload CRC, summary and seal with their headers. */
  DIGEST_INPUTS_CHECK: 4,
  /** ENCODE: writes CRC, summary and (parity) the list of data CRCs of the outputs into their headers, then seals them.
   *  The list is copied from the data units' headers, so those must be written or checked. */
  DIGEST_OUTPUTS_WRITE: 8,
  /**
   * ENCODE: computes the payload CRC and summary of the outputs into their headers, without list or seal (decoding).
   */
  DIGEST_OUTPUTS_STORE: 16,
} as const;

/** Completion status, after ibv_wc_status. */
export const Status = {
  SUCCESS: 0,
  /** A gather entry outside its region, or an unknown lkey. */
  LOCAL_PROTECTION_ERROR: 1,
  /** A SEND longer than the posted receive. */
  LENGTH_ERROR: 2,
  /** The queue pair was in the error state. */
  FLUSHED: 3,
  /** Wrong key, bounds or permission at the peer. */
  REMOTE_ACCESS_ERROR: 4,
  /** The peer is gone, or did not answer. */
  RETRY_EXCEEDED: 5,
  /** A malformed request, by the peer's judgement. */
  REMOTE_INVALID_REQUEST: 6,
  /** A digest differs. */
  CHECKSUM_ERROR: 7,
  /** A malformed coding request. */
  INVALID_REQUEST: 8,
} as const;

const statusNames = new Map<number, string>(Object.entries(Status).map(([name, value]) => [value, name]));

/** @returns the name of a completion status, e.g. 'FLUSHED' */
export function statusName(status: number): string {
  return statusNames.get(status) ?? `STATUS_${status}`;
}

const opcodeNames = new Map<number, string>(Object.entries(Opcode).map(([name, value]) => [value, name]));

/** @returns the name of an opcode, e.g. 'WRITE_WITH_IMM' */
export function opcodeName(opcode: number): string {
  return opcodeNames.get(opcode) ?? `OPCODE_${opcode}`;
}
