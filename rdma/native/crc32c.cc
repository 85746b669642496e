// CRC32C by eight tables, eight bytes a step ("slicing by 8"): for CPUs without an instruction for it.
#include "crc32c.h"

#include <cstring>

namespace tartan {
namespace {

struct Tables {
  // slice[s][b]: what byte b contributes when s zero bytes follow it.
  uint32_t slice[8][256];
};

constexpr Tables make_tables() {
  Tables tables{};
  for (unsigned b = 0; b < 256; b++) tables.slice[0][b] = crc32c_advance(b, 8);
  for (int s = 1; s < 8; s++) {
    for (unsigned b = 0; b < 256; b++) {
      const uint32_t before = tables.slice[s - 1][b];
      tables.slice[s][b] = before >> 8 ^ tables.slice[0][before & 0xff];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

uint32_t crc_bytes(uint32_t state, const uint8_t* data, size_t len) {
  const auto& slice = kTables.slice;
  for (; len >= 8; len -= 8, data += 8) {
    // By bytes, so that it holds on big-endian CPUs too; compilers make one load of it.
    const uint32_t low = state ^ (data[0] | data[1] << 8 | data[2] << 16 | static_cast<uint32_t>(data[3]) << 24);
    state = slice[7][low & 0xff] ^ slice[6][low >> 8 & 0xff] ^ slice[5][low >> 16 & 0xff] ^ slice[4][low >> 24] ^
            slice[3][data[4]] ^ slice[2][data[5]] ^ slice[1][data[6]] ^ slice[0][data[7]];
  }
  for (; len > 0; len--, data++) state = state >> 8 ^ slice[0][(state ^ *data) & 0xff];
  return state;
}

// The product of two reflected polynomials.
uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = crc32c_advance(b, 1);
  }
  return product;
}

void summarize(const uint8_t* data, size_t len, uint8_t* summary) {
  uint64_t lanes[2], word[2];
  std::memcpy(lanes, summary, 16);
  for (; len >= 16; len -= 16, data += 16) {
    std::memcpy(word, data, 16);
    lanes[0] ^= word[0];
    lanes[1] ^= word[1];
  }
  std::memcpy(summary, lanes, 16);
  for (size_t i = 0; i < len; i++) summary[i] ^= data[i];
}

}  // namespace

uint32_t digest_portable(uint32_t state, const uint8_t* data, size_t len, uint8_t* summary) {
  constexpr size_t kBlock = 4096;  // the second walk reads what the first left in L1; a multiple of 16
  while (len > 0) {
    const size_t now = len < kBlock ? len : kBlock;
    state = crc_bytes(state, data, now);
    if (summary) summarize(data, now, summary);
    data += now;
    len -= now;
  }
  return state;
}

uint32_t crc32c_of_zeros(size_t len) {
  uint32_t state = 0xffffffff;
  for (uint32_t power = crc32c_power(8); len > 0; len >>= 1, power = multiply(power, power)) {
    if (len & 1) state = multiply(state, power);
  }
  return ~state;
}

}  // namespace tartan
