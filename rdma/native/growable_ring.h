// A FIFO of plain records that grows by doubling and never shrinks; growth is counted, so that a steady state without
// allocations can be proved. Entries are named by a running index, which stays valid while the ring grows.
// Not thread-safe: whoever owns the ring uses it alone (always the engine thread).
#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>

#include "counters.h"

namespace tartan {

template <class T>
class GrowableRing {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  GrowableRing(uint32_t capacity, Counter& growth) : entries_(new T[capacity]), mask_(capacity - 1), growth_(growth) {}

  uint32_t head() const { return head_; }
  uint32_t tail() const { return tail_; }
  uint32_t size() const { return tail_ - head_; }
  bool empty() const { return head_ == tail_; }
  T& at(uint32_t index) { return entries_[index & mask_]; }
  T& front() { return at(head_); }
  void pop() { head_++; }

  T& push() {
    if (size() > mask_) grow();
    return at(tail_++);
  }

 private:
  void grow() {
    growth_.add(1);
    uint32_t capacity = (mask_ + 1) * 2;
    std::unique_ptr<T[]> larger(new T[capacity]);
    for (uint32_t i = head_; i != tail_; i++) larger[i & (capacity - 1)] = at(i);
    entries_ = std::move(larger);
    mask_ = capacity - 1;
  }

  std::unique_ptr<T[]> entries_;
  uint32_t mask_;  // capacity - 1; capacity is a power of two
  Counter& growth_;
  uint32_t head_ = 0, tail_ = 0;
};

}  // namespace tartan
