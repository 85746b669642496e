// CRC32C and summary in one walk, one function for each kind of CPU, with the contract of Kernel::digest.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tartan {

uint32_t digest_portable(uint32_t state, const uint8_t* data, size_t len, uint8_t* summary);
#if defined(__x86_64__)
uint32_t digest_avx2(uint32_t state, const uint8_t* data, size_t len, uint8_t* summary);  // also SSE4.2 and PCLMUL
uint32_t digest_gfni(uint32_t state, const uint8_t* data, size_t len, uint8_t* summary);  // also AVX-512 and VPCLMULQDQ
#endif

// The checksum of `len` zero bytes, in O(log len).
uint32_t crc32c_of_zeros(size_t len);

// x^n modulo the Castagnoli polynomial, reflected: bit 31 is the coefficient of x^0.
[[maybe_unused]] static constexpr uint32_t crc32c_advance(uint32_t power, unsigned n) {
  for (unsigned i = 0; i < n; i++) power = power >> 1 ^ (power & 1 ? 0x82f63b78u : 0u);
  return power;
}
[[maybe_unused]] static constexpr uint32_t crc32c_power(unsigned n) { return crc32c_advance(0x80000000u, n); }

}  // namespace tartan
