// The completion ring: the engine writes 32-byte records, publish() makes them visible, JavaScript polls. It never
// overflows: what does not fit waits in a growable ring of the engine's until a poll makes room.
//
// To sleep, JavaScript arms and polls once more: either it then sees what was published, or publish() sees that it is
// armed.
//
// Threads: push() and publish() on the engine thread; poll() and arm() on the JavaScript thread. JavaScript dispatches
// what one poll returned before the next one: poll() is also what gives the previous batch's entries back.
// Lifetime: the records lie in a SharedArrayBuffer pinned until the engine thread has been joined.
#pragma once
#include <atomic>
#include <cstdint>

#include "growable_ring.h"
#include "records.h"

namespace tartan {

class CompletionQueue {
 public:
  CompletionQueue(Completion* entries, uint32_t capacity, Counters& counters)
      : entries_(entries), mask_(capacity - 1), counters_(counters), waiting_(1024, counters.allocations) {}

  void push(const Completion& completion) {
    counters_.completions.add(1);
    if (!waiting_.empty() || written_ - consumed_.load(std::memory_order_acquire) > mask_) {
      waiting_.push() = completion;
      return;
    }
    entries_[written_++ & mask_] = completion;
  }

  // Makes what was pushed visible. Returns how many completions a sleeping JavaScript has to be woken for; 0 when it is
  // awake, or has seen all.
  uint32_t publish() {
    while (!waiting_.empty() && written_ - consumed_.load(std::memory_order_acquire) <= mask_) {
      entries_[written_++ & mask_] = waiting_.front();
      waiting_.pop();
    }
    // Set before the ring's state is looked at again (by the next publish), read by poll() after it made room.
    blocked_.store(!waiting_.empty(), std::memory_order_seq_cst);
    if (written_ != published_.load(std::memory_order_relaxed)) published_.store(written_, std::memory_order_seq_cst);
    return armed_.load(std::memory_order_seq_cst) ? written_ - consumed_.load(std::memory_order_seq_cst) : 0;
  }
  // True once for every arm(): whoever gets it wakes JavaScript.
  bool disarm() { return armed_.exchange(false, std::memory_order_seq_cst); }
  // Completions that wait although the ring has room again.
  bool can_move() const { return !waiting_.empty() && written_ - consumed_.load(std::memory_order_seq_cst) <= mask_; }

  // Returns how many new completions the ring holds; sets `kick` when the engine waits for the room this made.
  uint32_t poll(bool& kick) {
    consumed_.store(polled_, std::memory_order_seq_cst);
    kick = blocked_.load(std::memory_order_seq_cst);
    uint32_t now = published_.load(std::memory_order_seq_cst);
    uint32_t count = now - polled_;
    polled_ = now;
    if (count > 0) armed_.store(false, std::memory_order_seq_cst);  // awake: arms again before it sleeps
    return count;
  }
  void arm() { armed_.store(true, std::memory_order_seq_cst); }

 private:
  Completion* const entries_;
  const uint32_t mask_;
  Counters& counters_;
  GrowableRing<Completion> waiting_;
  uint32_t written_ = 0;    // engine
  uint32_t woken_for_ = 0;  // engine: entries written when JavaScript was woken last
  uint32_t polled_ = 0;     // JavaScript
  alignas(64) std::atomic<uint32_t> published_{0};
  std::atomic<bool> blocked_{false};
  alignas(64) std::atomic<uint32_t> consumed_{0};
  std::atomic<bool> armed_{false};
};

}  // namespace tartan
