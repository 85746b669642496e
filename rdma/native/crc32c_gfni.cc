// CRC32C by folding with 512-bit carry-less multiplications, and the summary from the same registers.
//
// Four accumulators of 64 bytes hold a remainder congruent to all bytes so far. A step multiplies each 16-byte lane by
// x^2048 (its halves by x^(2048+32) and x^(2048-32), for reflected bits) and adds the next 256 bytes. In the end the
// lanes are folded onto the last one in the same way, and the crc32 instruction reduces it.
// Source: Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", Intel, 2009
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes its own headers' _mm512_undefined_…() for a mistake (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "crc32c.h"

namespace tartan {
namespace {

constexpr uint64_t fold_constant(unsigned power) { return static_cast<uint64_t>(crc32c_power(power)) << 1; }

// The multipliers that move a 16-byte lane ahead by `bits`: the low half's, then the high half's.
struct Distance {
  uint64_t low, high;
  constexpr explicit Distance(unsigned bits) : low(fold_constant(bits + 32)), high(fold_constant(bits - 32)) {}
};

constexpr Distance k2048(2048), k512(512), k384(384), k256(256), k128(128);

inline __m512i broadcast(const Distance& d) {
  const long long low = static_cast<long long>(d.low), high = static_cast<long long>(d.high);
  return _mm512_set_epi64(high, low, high, low, high, low, high, low);
}

inline __m512i load(const uint8_t* data) { return _mm512_loadu_si512(data); }

inline __m512i xor3(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }

// lane·x^distance + next
inline __m512i fold(__m512i lanes, __m512i distance, __m512i next) {
  return xor3(_mm512_clmulepi64_epi128(lanes, distance, 0x00), _mm512_clmulepi64_epi128(lanes, distance, 0x11), next);
}

inline __m128i fold_lane(__m128i lane, const Distance& d, __m128i next) {
  const __m128i distance = _mm_set_epi64x(static_cast<long long>(d.high), static_cast<long long>(d.low));
  return _mm_xor_si128(
      next, _mm_xor_si128(_mm_clmulepi64_si128(lane, distance, 0x00), _mm_clmulepi64_si128(lane, distance, 0x11)));
}

inline void add_to_summary(uint8_t* summary, __m512i lanes) {
  const __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
  const __m128i lane = _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  __m128i* to = reinterpret_cast<__m128i*>(summary);
  _mm_storeu_si128(to, _mm_xor_si128(_mm_loadu_si128(to), lane));
}

uint32_t crc_short(uint32_t state, const uint8_t* data, size_t len) {
  for (; len >= 8; len -= 8, data += 8) {
    uint64_t word;
    __builtin_memcpy(&word, data, 8);
    state = static_cast<uint32_t>(_mm_crc32_u64(state, word));
  }
  for (; len > 0; len--, data++) state = _mm_crc32_u8(state, *data);
  return state;
}

}  // namespace

uint32_t digest_gfni(uint32_t state, const uint8_t* data, size_t len, uint8_t* summary) {
  __m512i sum = _mm512_setzero_si512();
  if (len >= 256) {
    __m512i a = load(data), b = load(data + 64), c = load(data + 128), d = load(data + 192);
    sum = xor3(a, b, _mm512_xor_si512(c, d));
    a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(state))));
    const __m512i far = broadcast(k2048);
    for (data += 256, len -= 256; len >= 256; data += 256, len -= 256) {
      const __m512i next_a = load(data), next_b = load(data + 64), next_c = load(data + 128), next_d = load(data + 192);
      a = fold(a, far, next_a);
      b = fold(b, far, next_b);
      c = fold(c, far, next_c);
      d = fold(d, far, next_d);
      sum = xor3(sum, xor3(next_a, next_b, next_c), next_d);
    }
    const __m512i near = broadcast(k512);
    __m512i all = fold(fold(fold(a, near, b), near, c), near, d);
    for (; len >= 64; data += 64, len -= 64) {
      const __m512i next = load(data);
      all = fold(all, near, next);
      sum = _mm512_xor_si512(sum, next);
    }
    __m128i lane = _mm512_extracti32x4_epi32(all, 3);
    lane = fold_lane(_mm512_extracti32x4_epi32(all, 2), k128, lane);
    lane = fold_lane(_mm512_extracti32x4_epi32(all, 1), k256, lane);
    lane = fold_lane(_mm512_castsi512_si128(all), k384, lane);
    const uint64_t first = _mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(lane)));
    state = static_cast<uint32_t>(_mm_crc32_u64(first, static_cast<uint64_t>(_mm_extract_epi64(lane, 1))));
  }
  state = crc_short(state, data, len);
  if (summary) {
    for (; len > 0; data += len < 64 ? len : 64, len -= len < 64 ? len : 64) {
      const __mmask64 mask = len < 64 ? (1ull << len) - 1 : ~0ull;
      sum = _mm512_xor_si512(sum, _mm512_maskz_loadu_epi8(mask, data));
    }
    add_to_summary(summary, sum);
  }
  return state;
}

}  // namespace tartan
