#include "async_events.h"

#include <fcntl.h>

#include <mutex>
#include <vector>

#include "rdma_core.h"

namespace tartan::verbs {

namespace {

struct Membership {
  ibv_context* context;
  AsyncListener* listener;
};

std::mutex mutex;
std::vector<Membership> memberships;

AsyncEvent copy(const ibv_async_event& event) {
  AsyncEvent result{event.event_type, 0, nullptr, 0, nullptr};
  switch (event.event_type) {
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG:
    case IBV_EVENT_PATH_MIG_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED:
      result.qp_num = event.element.qp->qp_num;
      break;
    case IBV_EVENT_CQ_ERR:
      result.cq = event.element.cq;
      break;
    case IBV_EVENT_SRQ_ERR:
    case IBV_EVENT_SRQ_LIMIT_REACHED:
      result.srq = event.element.srq;
      break;
    case IBV_EVENT_PORT_ACTIVE:
    case IBV_EVENT_PORT_ERR:
    case IBV_EVENT_LID_CHANGE:
    case IBV_EVENT_PKEY_CHANGE:
    case IBV_EVENT_SM_CHANGE:
    case IBV_EVENT_CLIENT_REREGISTER:
    case IBV_EVENT_GID_CHANGE:
      result.port = static_cast<uint32_t>(event.element.port_num);
      break;
    default:
      break;
  }
  return result;
}

}  // namespace

void join_asynchronous(ibv_context* context, AsyncListener* listener) {
  std::lock_guard<std::mutex> lock(mutex);
  fcntl(context->async_fd, F_SETFL, fcntl(context->async_fd, F_GETFL) | O_NONBLOCK);
  memberships.push_back({context, listener});
}

void leave_asynchronous(AsyncListener* listener) {
  std::lock_guard<std::mutex> lock(mutex);
  std::erase_if(memberships, [listener](const Membership& membership) { return membership.listener == listener; });
}

void take_asynchronous(ibv_context* context) {
  std::lock_guard<std::mutex> lock(mutex);
  ibv_async_event event;
  while (core().ibv.get_async_event(context, &event) == 0) {
    const AsyncEvent copied = copy(event);
    core().ibv.ack_async_event(&event);  // before anybody acts: destroying a queue pair waits for it
    for (const Membership& membership : memberships) {
      if (membership.context == context) membership.listener->deliver_asynchronous(copied);
    }
  }
}

std::vector<AsyncEvent> collect_asynchronous(std::vector<AsyncEvent>& filed) {
  std::lock_guard<std::mutex> lock(mutex);
  std::vector<AsyncEvent> collected;
  collected.swap(filed);
  return collected;
}

}  // namespace tartan::verbs
