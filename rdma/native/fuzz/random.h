// Random numbers from a seed (splitmix64), with the draws that fuzzing wants.
#pragma once
#include <cstdint>
#include <initializer_list>

namespace tartan::fuzz {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  // 0 … n − 1; 0 when n is 0.
  uint32_t below(uint64_t n) { return n == 0 ? 0 : static_cast<uint32_t>(next() % n); }
  bool chance(uint32_t per_mille) { return below(1000) < per_mille; }
  template <class T>
  T pick(std::initializer_list<T> from) {
    return from.begin()[below(from.size())];
  }
  // A number of the kind at which bounds checks go wrong; `near` is one that means something to the receiver.
  uint32_t bent(uint32_t near) {
    switch (below(6)) {
      case 0:
        return near + 1;
      case 1:
        return near - 1;
      case 2:
        return near ^ 1u << below(32);
      case 3:
        return pick({0u, 1u, 0x7fffffffu, 0x80000000u, 0xffffffffu, 0xfffffff0u, 65536u});
      case 4:
        return -near;
      default:
        return static_cast<uint32_t>(next());
    }
  }

 private:
  uint64_t state_;
};

}  // namespace tartan::fuzz
