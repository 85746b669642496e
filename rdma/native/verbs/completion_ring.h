// The completion ring of a device without a thread: pushed to and polled on the JavaScript thread, so it needs no
// synchronisation. What does not fit waits, and moves up when a poll gives the previous batch's entries back.
// Lifetime: the records lie in a SharedArrayBuffer that the binding pins until the adapter is closed.
#pragma once
#include <cstdint>

#include "../counters.h"
#include "../growable_ring.h"
#include "../records.h"

namespace tartan::verbs {

class CompletionRing {
 public:
  CompletionRing(Completion* entries, uint32_t capacity, Counters& counters)
      : entries_(entries), mask_(capacity - 1), counters_(counters), waiting_(1024, counters.allocations) {}

  void push(const Completion& completion) {
    counters_.completions.add(1);
    if (!waiting_.empty() || written_ - consumed_ > mask_)
      waiting_.push() = completion;
    else
      entries_[written_++ & mask_] = completion;
  }

  // Gives the previous batch back; returns how many new completions the ring holds.
  uint32_t poll() {
    consumed_ = polled_;
    for (; !waiting_.empty() && written_ - consumed_ <= mask_; waiting_.pop())
      entries_[written_++ & mask_] = waiting_.front();
    const uint32_t count = written_ - polled_;
    polled_ = written_;
    if (count > 0) is_armed_ = false;
    return count;
  }

  void arm() { is_armed_ = true; }
  // True once for each arm() when there is something to poll: JavaScript sleeps and must be woken.
  bool must_wake() {
    if (!is_armed_ || written_ == polled_) return false;
    is_armed_ = false;
    return true;
  }

 private:
  Completion* const entries_;
  const uint32_t mask_;
  Counters& counters_;
  GrowableRing<Completion> waiting_;
  uint32_t written_ = 0, polled_ = 0, consumed_ = 0;
  bool is_armed_ = false;
};

}  // namespace tartan::verbs
