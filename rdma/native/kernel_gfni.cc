// The kernel for CPUs with GFNI and AVX-512: multiplying by a constant is linear over bits, so one instruction
// multiplies 64 bytes by an 8 × 8 bit matrix (the instruction for products itself knows only another polynomial).
#include <immintrin.h>

#include "crc32c.h"
#include "gf256.h"
#include "kernel.h"

namespace tartan {
namespace {

constexpr int kUnroll = 4;
constexpr size_t kStep = kUnroll * 64;
// Without products memory alone is the limit: the lines to be written are asked for so many bytes ahead, too. XOR of
// two units in cache gains 10 %; with products it costs more than it gains.
constexpr size_t kOutAhead = 1024;

inline __m512i load(const uint8_t* at) { return _mm512_loadu_si512(at); }

inline __m512i xor3(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }

// The bit matrix of a coefficient, broadcast by the load.
inline __m512i bits(const uint8_t* coefficients, int r) {
  long long word;
  __builtin_memcpy(&word, coefficients + 8 * r, 8);
  return _mm512_set1_epi64(word);
}

inline __m512i times(__m512i x, __m512i matrix) { return _mm512_gf2p8affine_epi64_epi8(x, matrix, 0); }

// Unroll × 64 bytes of all rows, kept in registers. With Unroll 1 a mask may select fewer bytes.
template <int Ones, int General, int Unroll>
inline __attribute__((always_inline)) void step(const Column* columns, int count, size_t at, uint8_t* const* out,
                                                size_t ahead, __mmask64 mask = ~0ull) {
  constexpr int kRows = Ones + General;
  const auto get = [mask](const uint8_t* from) {
    return Unroll == 1 ? _mm512_maskz_loadu_epi8(mask, from) : load(from);
  };
  __m512i sum[kRows][Unroll];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 4
    for (int u = 0; u < Unroll; u++) {
      if (General == 0) __builtin_prefetch(out[r] + at + 64 * u + kOutAhead, 1);
      sum[r][u] = _mm512_setzero_si512();
    }
  }
  int c = 0;
  // Columns in pairs: one instruction adds both products.
  for (; c + 1 < count; c += 2) {
    const Column &left = columns[c], &right = columns[c + 1];
    __m512i x[Unroll], y[Unroll];
#pragma GCC unroll 4
    for (int u = 0; u < Unroll; u++) {
      _mm_prefetch(left.in + at + 64 * u + ahead, _MM_HINT_T0);
      _mm_prefetch(right.in + at + 64 * u + ahead, _MM_HINT_T0);
      x[u] = get(left.in + at + 64 * u);
      y[u] = get(right.in + at + 64 * u);
      if (Ones) sum[0][u] = xor3(sum[0][u], x[u], y[u]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < General; r++) {
      const __m512i left_bits = bits(left.coefficients, r), right_bits = bits(right.coefficients, r);
#pragma GCC unroll 4
      for (int u = 0; u < Unroll; u++)
        sum[Ones + r][u] = xor3(sum[Ones + r][u], times(x[u], left_bits), times(y[u], right_bits));
    }
  }
  if (c < count) {
    const Column& last = columns[c];
#pragma GCC unroll 4
    for (int u = 0; u < Unroll; u++) {
      _mm_prefetch(last.in + at + 64 * u + ahead, _MM_HINT_T0);
      const __m512i x = get(last.in + at + 64 * u);
      if (Ones) sum[0][u] = _mm512_xor_si512(sum[0][u], x);
#pragma GCC unroll 4
      for (int r = 0; r < General; r++)
        sum[Ones + r][u] = _mm512_xor_si512(sum[Ones + r][u], times(x, bits(last.coefficients, r)));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 4
    for (int u = 0; u < Unroll; u++) {
      if (Unroll == 1)
        _mm512_mask_storeu_epi8(out[r] + at, mask, sum[r][u]);
      else
        _mm512_storeu_si512(out[r] + at + 64 * u, sum[r][u]);
    }
  }
}

template <int Ones, int General>
void multiply_rows(const Column* columns, int count, uint8_t* const* out, size_t len, size_t ahead) {
  size_t at = 0;
  for (; at + kStep <= len; at += kStep) step<Ones, General, kUnroll>(columns, count, at, out, ahead);
  for (; at < len; at += 64) {
    step<Ones, General, 1>(columns, count, at, out, ahead, len - at < 64 ? (1ull << (len - at)) - 1 : ~0ull);
  }
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

// Every instruction set this file is compiled for. __builtin_cpu_supports also asks whether the operating system keeps
// the registers.
bool runs() {
  return __builtin_cpu_supports("gfni") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("vpclmulqdq") &&
         __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.2");
}

// Byte 7 − i of the matrix says which bits of x add up to bit i of the product.
void prepare(uint8_t coefficient, uint8_t* prepared) {
  for (int i = 0; i < 8; i++) {
    unsigned row = 0;
    for (int j = 0; j < 8; j++) row |= (gf256_mul(coefficient, static_cast<uint8_t>(1 << j)) >> i & 1u) << j;
    prepared[7 - i] = static_cast<uint8_t>(row);
  }
}

void stream_copy(uint8_t* to, const uint8_t* from, size_t len) {
  size_t at = 0;
  for (; at + 64 <= len; at += 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at), load(from + at));
  __builtin_memcpy(to + at, from + at, len - at);
}

void stream_fence() { _mm_sfence(); }

}  // namespace

extern const Kernel kKernelGfni = {"gfni", runs, 8, prepare, multiply, digest_gfni, stream_copy, stream_fence};

}  // namespace tartan
