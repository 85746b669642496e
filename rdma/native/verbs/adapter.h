// An RDMA adapter as one device uses it: a protection domain, completion queues, and everything between the two rings
// and the adapter. Unlike the software device it has no thread: JavaScript's thread posts in ring() and takes
// completions in poll(); a sleeping JavaScript is woken by libuv, which watches wait_fd().
//
// Threads: one JavaScript thread. Only deliver_asynchronous() is called from elsewhere: librdmacm opens an adapter once
// for a process, so devices of several threads share its asynchronous events (async_events.h).
// Lifetime: the rings' memory must outlive the adapter; regions' memory must outlive their registration.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "../counters.h"
#include "../records.h"
#include "async_events.h"
#include "completion_ring.h"
#include "events.h"
#include "listener.h"
#include "queue_pair.h"
#include "rdma_core.h"
#include "region.h"
#include "shared_receive_queue.h"

namespace tartan::verbs {

struct Limits {
  uint32_t send_depth = 128;  // requests of one queue pair with the adapter at a time
  uint32_t recv_depth = 512;
  uint32_t cq_entries = 8192;
  uint32_t max_inline = 64;
  uint8_t ack_timeout = 16;          // 4.096 µs × 2^16 = 0.27 s for each of RETRIES
  bool reserves_completions = true;  // false: queue pairs share completion queues that may overrun
};

// A completion queue of the adapter; each queue pair reserves room for all it can have outstanding, so none overruns.
struct CompletionSource {
  ibv_cq* cq = nullptr;
  uint32_t free = 0;
  uint32_t unacknowledged = 0;  // notifications taken
};

class Adapter : public AsyncListener {
 public:
  // nullptr and `why` when there is no such device, or it cannot be used. An empty name: the first with an active port.
  static std::unique_ptr<Adapter> open(const std::string& name, const Limits& limits, const WorkRequest* requests,
                                       uint32_t request_capacity, Completion* completions, uint32_t completion_capacity,
                                       std::string& why);
  ~Adapter() override;

  // The rings.
  uint32_t ring(uint32_t count);
  uint32_t poll(uint32_t spin_us);
  void arm();
  bool take_event(Event& event);
  int wait_fd() const { return epoll_fd_; }
  // wait_fd() is readable: takes what made it so; true when JavaScript has something to poll.
  bool on_ready();

  // Memory: the region's rkey, or 0 and `why`.
  uint32_t add_region(void* base, uint64_t bytes, uint32_t access, uint32_t lkey, std::string& why);
  void deregister(uint32_t lkey);

  // Connections.
  // `receives`: the shared receive queue of the queue pairs made, 0: each has its own.
  void listen(uint32_t id, const std::string& host, uint32_t port, uint32_t receives);
  void close_listener(uint32_t id, uint32_t fence);
  void connect(uint32_t id, const std::string& host, uint32_t port, int timeout_ms, uint32_t receives);
  void abandon(uint32_t id);  // a connect() that took too long
  void to_error(uint32_t qpn, const std::string& reason);
  void destroy_queue_pair(uint32_t qpn);
  void fence(uint32_t id);

  // Shared receive queues: a number for it, or 0 and `why`.
  uint32_t create_receives(uint32_t depth, std::string& why);
  bool arm_receives(uint32_t number, uint32_t limit);
  bool destroy_receives(uint32_t number);  // false: queue pairs use it
  std::string name() const { return core().ibv.get_device_name(context->device); }

  // ---- for its parts ----
  void complete(uint8_t opcode, uint8_t status, uint32_t qpn, uint32_t wr_id, uint32_t byte_length = 0,
                uint32_t imm = 0, uint32_t detail = 0) {
    completions_.push(Completion{wr_id, status, opcode, 0, qpn, byte_length, imm, detail, 0, 0});
  }
  void emit(Event event);
  Region* local(uint32_t lkey) const {
    return lkey < regions_.size() && regions_[lkey] && !regions_[lkey]->revoked ? regions_[lkey] : nullptr;
  }
  void hold(Region* region) {
    if (region) region->references++;
  }
  void release(Region* region);
  void mark_dirty(QueuePair* pair);
  void mark_dirty(SharedReceiveQueue* receives);
  void own(uint32_t hardware_qpn, QueuePair* pair);
  void disown(uint32_t hardware_qpn);
  void mark_failing(QueuePair* pair);
  void take_completions();  // everything that the adapter has, into the ring
  void adopt_request(uint32_t listener, const CmEvent& event);
  void forget(QueuePair* pair);
  CompletionSource* reserve(uint32_t entries, std::string& why);
  bool is_ours(const rdma_cm_id* id) const { return !id->verbs || id->verbs == context; }

  void deliver_asynchronous(const AsyncEvent& event) override;

  Counters counters;
  ibv_context* const context;
  ibv_device_attr attributes{};
  Limits limits;
  ibv_pd* pd = nullptr;
  rdma_event_channel* channel = nullptr;
  bool has_own_name = false;

 private:
  Adapter(ibv_context* context, const Limits& limits, const WorkRequest* requests, uint32_t request_capacity,
          Completion* completions, uint32_t completion_capacity);
  bool prepare(std::string& why);
  void execute(const WorkRequest& request);
  void settle();
  void announce();
  void deregister_now(Region* region);
  void handle_cm_events();
  bool take_notification();
  void handle_asynchronous();
  bool source_address(const sockaddr* destination, sockaddr_storage& source) const;
  QueuePair* pair(uint32_t qpn) const { return qpn < pairs_.size() ? pairs_[qpn] : nullptr; }
  SharedReceiveQueue* receives(uint32_t number) const {
    const auto found = receives_.find(number);
    return found == receives_.end() ? nullptr : found->second.get();
  }
  uint32_t add(QueuePair* pair);

  const WorkRequest* const requests_;
  const uint32_t request_mask_;
  uint32_t request_head_ = 0;
  CompletionRing completions_;
  std::deque<Event> events_;
  int epoll_fd_ = -1;
  int async_fd_ = -1;  // eventfd: asynchronous events were delivered
  ibv_comp_channel* completion_channel_ = nullptr;
  std::vector<std::unique_ptr<CompletionSource>> sources_;
  std::vector<Region*> regions_;            // by lkey
  std::unordered_set<uint32_t> rkeys_;      // ever given out
  std::vector<QueuePair*> pairs_{nullptr};  // by qpn; 0 names nothing
  std::unordered_map<uint32_t, Listener*> listeners_;
  std::vector<QueuePair*> dirty_, failing_;
  std::unordered_map<uint32_t, std::unique_ptr<SharedReceiveQueue>> receives_;  // by number
  std::vector<SharedReceiveQueue*> dirty_receives_;
  std::unordered_map<uint32_t, QueuePair*> owners_;  // by the adapter's number: who a shared receive completes on
  bool is_taking_ = false;
  bool wants_wake_ = false;               // JavaScript sleeps, and the ring has something that no adapter will announce
  std::vector<AsyncEvent> asynchronous_;  // under async_events.cc's lock
};

}  // namespace tartan::verbs
