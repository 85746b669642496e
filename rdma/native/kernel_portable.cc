// The kernel for every CPU: plain 64-bit words, eight bytes of the field in each.
//
// A coefficient is a sum of powers of 2, so its product with x is a sum of x·1, x·2, x·4, … A word is doubled in all
// its bytes by a shift and a masked reduction; the doublings are shared by the rows. Compilers make vectors of it.
#include <cstring>

#include "crc32c.h"
#include "kernel.h"

namespace tartan {
namespace {

constexpr int kStripWords = 8;  // a strip of 64 bytes: long enough that its branches on coefficient bits cost little

inline void double_strip(uint64_t* x) {
  for (int w = 0; w < kStripWords; w++) {
    const uint64_t high = x[w] & 0x8080808080808080ull;
    // high − high/128 is 0x7f in the bytes that overflow; with high itself, 0xff.
    x[w] = (x[w] ^ high) << 1 ^ ((high | (high - (high >> 7))) & 0x1d1d1d1d1d1d1d1dull);
  }
}

inline void add_strip(uint64_t* sum, const uint64_t* x) {
  for (int w = 0; w < kStripWords; w++) sum[w] ^= x[w];
}

// Inlined, so that `len` is a constant but for the last strip and copies are single loads.
inline __attribute__((always_inline)) void multiply_strip(const Column* columns, int count, size_t at, int ones_rows,
                                                          int general_rows, uint8_t* const* out, size_t len) {
  uint64_t sum[kMaxGroupRows][kStripWords] = {};
  for (int c = 0; c < count; c++) {
    uint64_t x[kStripWords] = {};
    std::memcpy(x, columns[c].in + at, len);
    if (ones_rows) add_strip(sum[0], x);
    unsigned rest = 0;  // the bits of all coefficients not yet dealt with
    for (int r = 0; r < general_rows; r++) rest |= columns[c].coefficients[r];
    for (int bit = 0; rest >> bit; bit++) {
      if (bit > 0) double_strip(x);
      for (int r = 0; r < general_rows; r++) {
        if (columns[c].coefficients[r] >> bit & 1) add_strip(sum[ones_rows + r], x);
      }
    }
  }
  for (int r = 0; r < ones_rows + general_rows; r++) std::memcpy(out[r] + at, sum[r], len);
}

void multiply(const Column* columns, int count, int ones_rows, int general_rows, uint8_t* const* out, size_t len,
              size_t) {
  constexpr size_t kStrip = kStripWords * 8;
  size_t at = 0;
  for (; at + kStrip <= len; at += kStrip) multiply_strip(columns, count, at, ones_rows, general_rows, out, kStrip);
  if (at < len) multiply_strip(columns, count, at, ones_rows, general_rows, out, len - at);
}

bool runs() { return true; }

void prepare(uint8_t coefficient, uint8_t* prepared) { *prepared = coefficient; }

void stream_copy(uint8_t* to, const uint8_t* from, size_t len) { std::memcpy(to, from, len); }

void stream_fence() {}

}  // namespace

extern const Kernel kKernelPortable = {"portable",      runs,        1,           prepare, multiply,
                                       digest_portable, stream_copy, stream_fence};

}  // namespace tartan
