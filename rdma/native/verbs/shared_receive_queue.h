// Receives that several queue pairs share: whichever gets a message takes the oldest. What is posted beyond the
// adapter's depth waits in memory, as for a queue pair.
//
// A receive lies in a slot from posting to completion, and the slot names it to the adapter: queue pairs complete them
// in any order. One that a failing connection had begun to fill has no completion of the adapter's; it is flushed with
// what is left when the queue is destroyed, and holds its region until then.
//
// Threads: all on the JavaScript thread of the device. Lifetime: outlives the queue pairs made on it.
#pragma once
#include <infiniband/verbs.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../growable_ring.h"
#include "../records.h"
#include "region.h"

namespace tartan::verbs {

class Adapter;

class SharedReceiveQueue {
 public:
  SharedReceiveQueue(Adapter& adapter, uint32_t number, uint32_t depth);
  ~SharedReceiveQueue();

  bool open(std::string& why);
  void post(const WorkRequest& request);
  void pump();
  // The adapter has completed a receive, on the queue pair `qpn` (0: it is gone).
  void on_completion(const ibv_wc& wc, uint32_t qpn);
  // Asks for one event when fewer than `limit` receives are left with the adapter; false: it refuses.
  bool arm_limit(uint32_t limit);
  // No queue pair uses it any more: ends it in the adapter and flushes what is left, oldest first.
  void destroy();

  const uint32_t number;  // names it as a queue pair's number does
  bool is_dirty = false;
  uint32_t users = 0;  // queue pairs made on it
  uint32_t depth() const { return depth_; }
  ibv_srq* srq() const { return srq_; }

  static constexpr uint64_t BIT = uint64_t{1} << 62;

 private:
  struct Entry {
    uint32_t wr_id;
    uint32_t order;  // of posting
    bool is_used, has_buffer;
    Region* region;
    uint32_t offset, length;
  };

  void finish(Entry& entry, uint8_t opcode, uint8_t status, uint32_t qpn, uint32_t length, uint32_t imm);

  Adapter& adapter_;
  uint32_t depth_;
  ibv_srq* srq_ = nullptr;
  std::vector<Entry> slots_;
  std::vector<uint32_t> free_;
  GrowableRing<Entry> waiting_;
  uint32_t posted_ = 0;
};

}  // namespace tartan::verbs
