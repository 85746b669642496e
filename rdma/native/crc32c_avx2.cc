// CRC32C by the CPU's crc32 instruction on three runs of bytes at a time: it takes 3 cycles but one starts every cycle.
// The runs' registers are joined by a carry-less multiplication.
#include <immintrin.h>

#include "crc32c.h"

namespace tartan {
namespace {

constexpr int kMaxRunWords = 256;  // 2 KiB a run, 6 KiB for three: well inside L1

struct Shifts {
  // word[n]: multiplies a register by x^(64·n), that is, appends n words of zeros (see shift()).
  uint32_t word[kMaxRunWords + 1];
};

constexpr Shifts make_shifts() {
  Shifts shifts{};
  // The product of two reflected 32-bit polynomials, taken as 64 reflected bits, has a factor x too many, and the crc32
  // instruction multiplies by x^32: 33 less than the distance.
  shifts.word[1] = crc32c_power(64 - 33);
  for (int n = 2; n <= kMaxRunWords; n++) shifts.word[n] = crc32c_advance(shifts.word[n - 1], 64);
  return shifts;
}

constexpr Shifts kShifts = make_shifts();

inline uint64_t load(const uint8_t* data) {
  uint64_t word;
  __builtin_memcpy(&word, data, 8);
  return word;
}

inline uint32_t shift(uint32_t state, int words) {
  const __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128(static_cast<int>(state)),
                                               _mm_cvtsi32_si128(static_cast<int>(kShifts.word[words])), 0);
  return static_cast<uint32_t>(_mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(product))));
}

uint32_t crc_bytes(uint32_t state, const uint8_t* data, size_t len) {
  while (len >= 96) {
    const size_t third = len / 24;
    const int words = third < kMaxRunWords ? static_cast<int>(third) : kMaxRunWords;
    const size_t run = static_cast<size_t>(words) * 8;
    uint64_t a = state, b = 0, c = 0;
    for (const uint8_t *at = data, *end = data + run; at < end; at += 8) {
      a = _mm_crc32_u64(a, load(at));
      b = _mm_crc32_u64(b, load(at + run));
      c = _mm_crc32_u64(c, load(at + 2 * run));
    }
    const uint32_t ab = shift(static_cast<uint32_t>(a), words) ^ static_cast<uint32_t>(b);
    state = shift(ab, words) ^ static_cast<uint32_t>(c);
    data += 3 * run;
    len -= 3 * run;
  }
  for (; len >= 8; len -= 8, data += 8) state = static_cast<uint32_t>(_mm_crc32_u64(state, load(data)));
  for (; len > 0; len--, data++) state = _mm_crc32_u8(state, *data);
  return state;
}

void summarize(const uint8_t* data, size_t len, uint8_t* summary) {
  __m256i lanes[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  for (; len >= 128; len -= 128, data += 128) {
    for (int i = 0; i < 4; i++) {
      lanes[i] = _mm256_xor_si256(lanes[i], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + 32 * i)));
    }
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(lanes[0], lanes[1]), _mm256_xor_si256(lanes[2], lanes[3]));
  __m128i lane = _mm_xor_si128(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  for (; len >= 16; len -= 16, data += 16)
    lane = _mm_xor_si128(lane, _mm_loadu_si128(reinterpret_cast<const __m128i*>(data)));
  __m128i* to = reinterpret_cast<__m128i*>(summary);
  _mm_storeu_si128(to, _mm_xor_si128(_mm_loadu_si128(to), lane));
  for (size_t i = 0; i < len; i++) summary[i] ^= data[i];
}

}  // namespace

uint32_t digest_avx2(uint32_t state, const uint8_t* data, size_t len, uint8_t* summary) {
  constexpr size_t kBlock = 3 * kMaxRunWords * 8;  // the second walk reads what the first left in L1; a multiple of 16
  if (summary == nullptr) return crc_bytes(state, data, len);
  while (len > 0) {
    const size_t now = len < kBlock ? len : kBlock;
    state = crc_bytes(state, data, now);
    summarize(data, now, summary);
    data += now;
    len -= now;
  }
  return state;
}

}  // namespace tartan
