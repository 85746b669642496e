// The kernel for CPUs with AVX2: a product is the sum of two lookups of 16 bytes each, by the low and the high nibble.
// Source: Plank, Greenan, Miller, "Screaming Fast Galois Field Arithmetic Using Intel SIMD Instructions", FAST 2013
#include <immintrin.h>

#include "crc32c.h"
#include "gf256.h"
#include "kernel.h"

namespace tartan {
namespace {

constexpr int kUnroll = 2;
constexpr size_t kStep = kUnroll * 32;

inline __m256i load(const uint8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
inline void store(uint8_t* at, __m256i value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), value); }
inline __m256i table(const uint8_t* at) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(at)));
}

template <int Ones, int General>
inline __attribute__((always_inline)) void step(const Column* columns, int count, size_t at, uint8_t* const* out,
                                                size_t ahead) {
  constexpr int kRows = Ones + General;
  const __m256i nibble = _mm256_set1_epi8(0x0f);
  __m256i sum[kRows][kUnroll];
  for (int r = 0; r < kRows; r++) {
    for (int u = 0; u < kUnroll; u++) sum[r][u] = _mm256_setzero_si256();
  }
  for (int c = 0; c < count; c++) {
    const uint8_t* in = columns[c].in + at;
    const uint8_t* coefficients = columns[c].coefficients;
    __m256i low[kUnroll], high[kUnroll];
    for (int u = 0; u < kUnroll; u++) {
      if (u % 2 == 0) _mm_prefetch(in + 32 * u + ahead, _MM_HINT_T0);
      const __m256i x = load(in + 32 * u);
      if (Ones) sum[0][u] = _mm256_xor_si256(sum[0][u], x);
      low[u] = _mm256_and_si256(x, nibble);
      high[u] = _mm256_and_si256(_mm256_srli_epi64(x, 4), nibble);
    }
    for (int r = 0; r < General; r++) {
      const __m256i low_table = table(coefficients + 32 * r), high_table = table(coefficients + 32 * r + 16);
      for (int u = 0; u < kUnroll; u++) {
        sum[Ones + r][u] = _mm256_xor_si256(
            sum[Ones + r][u],
            _mm256_xor_si256(_mm256_shuffle_epi8(low_table, low[u]), _mm256_shuffle_epi8(high_table, high[u])));
      }
    }
  }
  for (int r = 0; r < kRows; r++) {
    for (int u = 0; u < kUnroll; u++) store(out[r] + at + 32 * u, sum[r][u]);
  }
}

template <int Ones, int General>
void multiply_rows(const Column* columns, int count, uint8_t* const* out, size_t len, size_t ahead) {
  size_t at = 0;
  for (; at + kStep <= len; at += kStep) step<Ones, General>(columns, count, at, out, ahead);
  if (at == len) return;

  // The rest, less than a step: by way of a copy, so that nothing beyond the ends is touched.
  alignas(32) uint8_t in_copy[32][kStep], out_copy[kMaxGroupRows][kStep];
  Column copies[32];
  uint8_t* outs[kMaxGroupRows];
  for (int c = 0; c < count; c++) {
    __builtin_memcpy(in_copy[c], columns[c].in + at, len - at);
    copies[c] = {in_copy[c], columns[c].coefficients};
  }
  for (int r = 0; r < Ones + General; r++) outs[r] = out_copy[r];
  step<Ones, General>(copies, count, 0, outs, 0);
  for (int r = 0; r < Ones + General; r++) __builtin_memcpy(out[r] + at, out_copy[r], len - at);
}

void multiply(const Column* columns, int count, int ones_rows, int general_rows, uint8_t* const* out, size_t len,
              size_t ahead) {
  switch (ones_rows * 8 + general_rows) {
    case 1:
      return multiply_rows<0, 1>(columns, count, out, len, ahead);
    case 2:
      return multiply_rows<0, 2>(columns, count, out, len, ahead);
    case 3:
      return multiply_rows<0, 3>(columns, count, out, len, ahead);
    case 4:
      return multiply_rows<0, 4>(columns, count, out, len, ahead);
    case 8:
      return multiply_rows<1, 0>(columns, count, out, len, ahead);
    case 9:
      return multiply_rows<1, 1>(columns, count, out, len, ahead);
    case 10:
      return multiply_rows<1, 2>(columns, count, out, len, ahead);
    case 11:
      return multiply_rows<1, 3>(columns, count, out, len, ahead);
  }
}

// __builtin_cpu_supports also asks whether the operating system keeps the registers.
bool runs() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.2");
}

// 16 products of the low nibble, then 16 of the high one.
void prepare(uint8_t coefficient, uint8_t* prepared) {
  for (int n = 0; n < 16; n++) {
    prepared[n] = gf256_mul(coefficient, static_cast<uint8_t>(n));
    prepared[16 + n] = gf256_mul(coefficient, static_cast<uint8_t>(n << 4));
  }
}

void stream_copy(uint8_t* to, const uint8_t* from, size_t len) {
  size_t at = 0;
  for (; at + 32 <= len; at += 32) _mm256_stream_si256(reinterpret_cast<__m256i*>(to + at), load(from + at));
  __builtin_memcpy(to + at, from + at, len - at);
}

void stream_fence() { _mm_sfence(); }

}  // namespace

extern const Kernel kKernelAvx2 = {"avx2", runs, 32, prepare, multiply, digest_avx2, stream_copy, stream_fence};

}  // namespace tartan
