// The send queue ring: JavaScript writes 64-byte records, release() publishes them, the engine takes them.
//
// Threads: release() and free_entries() on the JavaScript thread; the rest on the engine thread. The records lie in a
// SharedArrayBuffer that the binding pins until the engine thread has been joined.
#pragma once
#include <atomic>
#include <cstdint>

#include "records.h"

namespace tartan {

class SubmissionQueue {
 public:
  SubmissionQueue(const WorkRequest* entries, uint32_t capacity) : entries_(entries), mask_(capacity - 1) {}

  void release(uint32_t count) {
    tail_.store(tail_.load(std::memory_order_relaxed) + count, std::memory_order_seq_cst);
  }
  uint32_t free_entries() const {
    return mask_ + 1 - (tail_.load(std::memory_order_relaxed) - head_.load(std::memory_order_acquire));
  }

  // Positions run from 0, modulo 2^32; a command carries the tail at its submission, so that it keeps its place.
  uint32_t tail() const { return tail_.load(std::memory_order_seq_cst); }
  uint32_t head() const { return head_.load(std::memory_order_relaxed); }
  const WorkRequest& at(uint32_t position) const { return entries_[position & mask_]; }
  void advance(uint32_t head) { head_.store(head, std::memory_order_release); }

 private:
  const WorkRequest* const entries_;
  const uint32_t mask_;
  alignas(64) std::atomic<uint32_t> tail_{0};  // written by JavaScript
  alignas(64) std::atomic<uint32_t> head_{0};  // written by the engine
};

}  // namespace tartan
