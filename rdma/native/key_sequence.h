// Keys that are never repeated and can't be guessed from one another, without remembering those given out: a
// permutation of the numbers 1, 2, 3 … under a secret of this sequence. After 2^32 - 1 keys there are no more.
//
// Source: a Feistel network of two 16-bit halves (Luby and Rackoff, 1988), the mixing of whose rounds is splitmix64's.
#pragma once
#include <sys/random.h>

#include <cstdint>

namespace tartan {

class KeySequence {
 public:
  // The next key, never 0; 0: there is no randomness, or no key is left.
  uint32_t next() {
    if (!has_secret_) has_secret_ = getrandom(secret_, sizeof secret_, 0) == sizeof secret_;
    if (!has_secret_) return 0;
    while (numbered_ < UINT32_MAX) {
      if (const uint32_t key = permute(++numbered_); key != 0) return key;
    }
    return 0;
  }

 private:
  static constexpr int ROUNDS = 8;

  uint32_t permute(uint32_t number) const {
    uint32_t left = number >> 16, right = number & 0xffff;
    for (uint64_t secret : secret_) {
      uint64_t z = secret ^ (right + 1) * 0x9e3779b97f4a7c15;
      z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
      z = (z ^ z >> 27 ^ secret >> 7) * 0x94d049bb133111eb;
      const uint32_t mixed = left ^ static_cast<uint32_t>(z >> 48);
      left = right;
      right = mixed;
    }
    return left << 16 | right;
  }

  uint64_t secret_[ROUNDS] = {};
  bool has_secret_ = false;
  uint32_t numbered_ = 0;
};

}  // namespace tartan
