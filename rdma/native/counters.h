// Monotonic counts. Each has one writing thread (the engine's, except `rings`); JavaScript reads them at any time, so
// they are atomics, but never locked ones: add() is a plain load and store.
#pragma once
#include <atomic>
#include <cstdint>

namespace tartan {

class Counter {
 public:
  void add(uint64_t n) { value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }
  uint64_t get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

// In the order in which the binding hands them out (COUNTER_NAMES in src/soft/native.ts).
struct Counters {
  Counter requests, completions, rings, wakeups;
  Counter bytes_sent, bytes_received, bytes_encoded, bytes_verified;
  Counter bytes_copied, allocations, errors, refused_accesses;
};

}  // namespace tartan
