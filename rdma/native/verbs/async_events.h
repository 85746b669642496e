// Asynchronous events of adapters. librdmacm opens an adapter once for the process, so all devices on it, of whatever
// thread, share one queue of events: whoever finds it readable takes them all and delivers each to every device there.
//
// Threads: any; everything is under one lock. A device's deliver_asynchronous() runs under it, on the taker's thread,
// and only files the event.
#pragma once
#include <infiniband/verbs.h>

#include <cstdint>
#include <vector>

namespace tartan::verbs {

struct AsyncEvent {
  ibv_event_type type;
  uint32_t qp_num;     // queue pair events
  const ibv_cq* cq;    // completion queue events
  uint32_t port;       // port events
  const ibv_srq* srq;  // shared receive queue events
};

class AsyncListener {
 public:
  virtual ~AsyncListener() = default;
  virtual void deliver_asynchronous(const AsyncEvent& event) = 0;
};

void join_asynchronous(ibv_context* context, AsyncListener* listener);
void leave_asynchronous(AsyncListener* listener);
void take_asynchronous(ibv_context* context);
// Empties a device's list of events filed for it.
std::vector<AsyncEvent> collect_asynchronous(std::vector<AsyncEvent>& filed);

}  // namespace tartan::verbs
