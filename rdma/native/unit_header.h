// The digests inside a unit's header: reading, writing and sealing them. Headers need no alignment.
#pragma once
#include <cstdint>
#include <cstring>

#include "coder.h"

namespace tartan {

inline uint32_t load32(const uint8_t* at) {
  uint32_t value;
  memcpy(&value, at, 4);
  return value;
}
inline void store32(uint8_t* at, uint32_t value) { memcpy(at, &value, 4); }

// CRC32C over the whole header but the seal itself.
inline uint32_t header_seal(const DigestLayout& layout, const uint8_t* header, uint32_t bytes) {
  const uint32_t crc = coding_crc32c(0, header, layout.seal_offset);
  return coding_crc32c(crc, header + layout.seal_offset + 4, bytes - layout.seal_offset - 4);
}

inline void store_digest(const DigestLayout& layout, uint8_t* header, const Digest& digest) {
  store32(header + layout.payload_crc_offset, digest.crc32c);
  memcpy(header + layout.summary_offset, digest.summary, 16);
}

inline void seal(const DigestLayout& layout, uint8_t* header, uint32_t bytes) {
  store32(header + layout.seal_offset, header_seal(layout, header, bytes));
}

// 0: all is as the header says; otherwise what differs first: 1 the seal, 2 the payload's CRC, 3 its summary.
inline uint32_t header_mismatch(const DigestLayout& layout, const uint8_t* header, uint32_t bytes,
                                const Digest& digest) {
  if (load32(header + layout.seal_offset) != header_seal(layout, header, bytes)) return 1;
  if (load32(header + layout.payload_crc_offset) != digest.crc32c) return 2;
  if (memcmp(header + layout.summary_offset, digest.summary, 16) != 0) return 3;
  return 0;
}

// Whether every digest field lies inside a header of so many bytes.
inline bool layout_fits(const DigestLayout& layout, uint64_t bytes) {
  return uint64_t{layout.payload_crc_offset} + 4 <= bytes && uint64_t{layout.seal_offset} + 4 <= bytes &&
         uint64_t{layout.summary_offset} + 16 <= bytes;
}

}  // namespace tartan
