// The packets of docs/wire-format.md ("Stripe packets") as bytes: field offsets, checksum, and what a unit header in
// one says. The twin of wire/packet-header.ts and wire/unit-header.ts; test/rdma/packets.test.ts compares what both
// make.
#pragma once
#include <endian.h>

#include <cstdint>
#include <cstring>

#include "coder.h"
#include "unit_header.h"

namespace tartan::packet {

constexpr uint32_t MAGIC = 0x54525450;  // "TRTP"
constexpr uint8_t VERSION = 1;
constexpr uint32_t HEADER_BYTES = 24;
constexpr uint32_t DESCRIPTOR_BYTES = 28;
constexpr uint32_t MAX_K = 8, MAX_M = 4;
constexpr uint32_t MAX_BYTES = 9216;      // of a UDP payload that this side takes or makes
constexpr uint32_t MIN_CHUNK_BYTES = 64;  // of a unit that has more than one

enum Type : uint8_t { STRIPE = 1, UNIT = 2, PARITY = 3, ACK = 6 };

constexpr uint32_t UNIT_MAGIC = 0x4e545254;  // "TRTN"
constexpr uint8_t UNIT_VERSION = 1;
constexpr uint32_t DATA_HEADER_BYTES = 88;
constexpr DigestLayout DIGESTS{56, 60, 64, 88, 88};
constexpr uint32_t SLOT_PAYLOAD = 4096;  // a unit slot's payload; its header ends there

constexpr uint32_t ACK_PREFIX_BYTES = 16, ACK_ENTRY_BYTES = 40, ACK_BITS = 128;
constexpr uint32_t MAX_ACK_ENTRIES = 32;

inline uint16_t load16_be(const uint8_t* at) { return static_cast<uint16_t>(at[0] << 8 | at[1]); }
inline uint32_t load32_be(const uint8_t* at) { return be32toh(load32(at)); }
inline void store16_be(uint8_t* at, uint32_t value) {
  at[0] = static_cast<uint8_t>(value >> 8);
  at[1] = static_cast<uint8_t>(value);
}
inline void store32_be(uint8_t* at, uint32_t value) { store32(at, htobe32(value)); }
inline uint64_t load64(const uint8_t* at) {
  uint64_t value;
  memcpy(&value, at, 8);
  return value;
}
inline void store64(uint8_t* at, uint64_t value) { memcpy(at, &value, 8); }
inline uint16_t load16(const uint8_t* at) {
  uint16_t value;
  memcpy(&value, at, 2);
  return value;
}

// Sum of 16-bit words for the internet checksum (RFC 1071); `bytes` is even.
inline uint64_t sum16(const uint8_t* at, uint32_t bytes) {
  uint64_t sum = 0;
  for (uint32_t i = 0; i < bytes; i += 2) sum += load16_be(at + i);
  return sum;
}
inline uint16_t fold(uint64_t sum) {
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

// A packet header without its checksum.
inline void put_header(uint8_t* at, Type type, uint32_t k, uint32_t m, uint32_t group, uint32_t map_epoch,
                       uint32_t offset, uint32_t chunk) {
  store32_be(at, MAGIC);
  at[4] = VERSION;
  at[5] = type;
  at[6] = static_cast<uint8_t>(k);
  at[7] = static_cast<uint8_t>(m);
  store32_be(at + 8, group);
  store32_be(at + 12, map_epoch);
  store32_be(at + 16, offset);
  store16_be(at + 20, chunk);
  store16_be(at + 22, 0);
}

// A view of a unit header's fields; nothing is checked.
struct UnitView {
  const uint8_t* at;
  uint32_t magic() const { return load32(at); }
  uint8_t version() const { return at[4]; }
  uint32_t k() const { return at[6]; }
  uint32_t m() const { return at[7]; }
  uint32_t unit() const { return at[8]; }
  uint32_t shift() const { return at[9]; }
  uint32_t extension_words() const { return at[11]; }
  uint64_t file() const { return load64(at + 16); }
  uint64_t stripe() const { return load64(at + 24); }
  uint32_t unit_length() const { return load32(at + 32); }
  uint32_t stripe_length() const { return load32(at + 36); }
  uint32_t map_epoch() const { return load32(at + 40); }
  uint32_t writer_epoch() const { return load32(at + 44); }
  uint32_t counter() const { return load32(at + 48); }
  uint32_t header_bytes() const { return 64 + 4 * extension_words(); }

  // Whether shape and lengths fit each other, as checkHeader() of wire/unit-header.ts has it, and a packet's limits.
  bool is_plausible() const {
    if (magic() != UNIT_MAGIC || version() != UNIT_VERSION) return false;
    if (k() < 1 || k() > MAX_K || m() < 1 || m() > MAX_M || unit() >= k() + m() || shift() < 9 || shift() > 22)
      return false;
    if (header_bytes() != DATA_HEADER_BYTES + (unit() < k() ? 0 : 4 * k())) return false;
    const uint64_t unit_bytes = uint64_t{1} << shift(), length = stripe_length();
    if (length < 1 || length > k() * unit_bytes) return false;
    const uint64_t before = unit() < k() ? unit() * unit_bytes : 0;
    const uint64_t left = length > before ? length - before : 0;
    return unit_length() == (left < unit_bytes ? left : unit_bytes);
  }
};

// The stripe seal: CRC32C of the 88 bytes without what differs between units and without the seal, then of the data
// units' CRCs.
//
// header: of any unit of the stripe. crcs: k of them, little-endian, as in a parity header.
inline uint32_t stripe_seal(const uint8_t* header, const uint8_t* crcs, uint32_t k) {
  uint8_t common[DATA_HEADER_BYTES];
  memcpy(common, header, DATA_HEADER_BYTES);
  common[8] = 0;
  common[11] = 0;
  memset(common + 32, 0, 4);
  memset(common + 56, 0, 24);
  const uint32_t crc = coding_crc32c(0, common, DIGESTS.seal_offset);
  const uint32_t rest =
      coding_crc32c(crc, common + DIGESTS.seal_offset + 4, DATA_HEADER_BYTES - DIGESTS.seal_offset - 4);
  return coding_crc32c(rest, crcs, 4 * k);
}

}  // namespace tartan::packet
