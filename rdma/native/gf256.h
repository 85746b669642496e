// The field of the codes: GF(2^8), polynomial 0x11d. For preparing tables, not for bulk work.
// `static`, so that a file compiled for a newer CPU never lends its code to one for any CPU at link time.
#pragma once
#include <cstdint>

namespace tartan {

[[maybe_unused]] static constexpr uint8_t gf256_mul(uint8_t a, uint8_t b) {
  unsigned product = 0, shifted = a;
  for (int bit = 0; bit < 8; bit++) {
    if (b >> bit & 1) product ^= shifted;
    shifted = shifted << 1 ^ (shifted & 0x80 ? 0x11d : 0);
  }
  return static_cast<uint8_t>(product);
}

}  // namespace tartan
