#include "adapter.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <bit>

#include "../address.h"
#include "device_choice.h"

namespace tartan::verbs {

namespace {

constexpr uint32_t TAKEN_AT_ONCE = 64;
constexpr int MAX_GIDS = 256;

enum Source : uint32_t { COMPLETIONS, CONNECTIONS, PROCESS_EVENTS, OWN_EVENTS };

bool set_nonblocking(int fd) { return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0; }

int64_t now_us() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000000 + now.tv_nsec / 1000;
}

std::string text_of(const sockaddr* address) {
  Address copy;
  copy.length = address->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  memcpy(&copy.storage, address, copy.length);
  return copy.text();
}

}  // namespace

// ---- opening and closing ----

std::unique_ptr<Adapter> Adapter::open(const std::string& name, const Limits& limits, const WorkRequest* requests,
                                       uint32_t request_capacity, Completion* completions, uint32_t completion_capacity,
                                       std::string& why) {
  if (!load(why)) return nullptr;
  ibv_context* chosen = choose_device(name, why);
  if (!chosen) return nullptr;
  std::unique_ptr<Adapter> adapter(
      new Adapter(chosen, limits, requests, request_capacity, completions, completion_capacity));
  adapter->has_own_name = !name.empty();
  if (!adapter->prepare(why)) return nullptr;
  return adapter;
}

Adapter::Adapter(ibv_context* context, const Limits& limits, const WorkRequest* requests, uint32_t request_capacity,
                 Completion* completions, uint32_t completion_capacity)
    : context(context),
      limits(limits),
      requests_(requests),
      request_mask_(request_capacity - 1),
      completions_(completions, completion_capacity, counters) {}

bool Adapter::prepare(std::string& why) {
  const auto failed = [&why](const char* what) {
    why = std::string(what) + ": " + strerror(errno);
    return false;
  };
  if (core().ibv.query_device(context, &attributes) != 0) return failed("cannot query the device");
  limits.send_depth = std::min(limits.send_depth, static_cast<uint32_t>(attributes.max_qp_wr));
  limits.recv_depth = std::min(limits.recv_depth, static_cast<uint32_t>(attributes.max_qp_wr));
  limits.cq_entries = std::min(limits.cq_entries, static_cast<uint32_t>(attributes.max_cqe));
  if (!(pd = core().ibv.alloc_pd(context))) return failed("cannot allocate a protection domain");
  if (!(completion_channel_ = core().ibv.create_comp_channel(context)))
    return failed("cannot create a completion channel");
  if (!(channel = core().cm.create_event_channel())) return failed("cannot create an event channel");
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  async_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (epoll_fd_ < 0 || async_fd_ < 0) return failed("cannot create a descriptor");
  const struct {
    int fd;
    Source source;
  } waits[] = {{completion_channel_->fd, COMPLETIONS},
               {channel->fd, CONNECTIONS},
               {context->async_fd, PROCESS_EVENTS},
               {async_fd_, OWN_EVENTS}};
  for (const auto& wait : waits) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u32 = wait.source;
    if (!set_nonblocking(wait.fd) || epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, wait.fd, &event) != 0)
      return failed("cannot wait for the device");
  }
  join_asynchronous(context, this);
  return true;
}

// What the adapter still holds goes in the order in which its parts depend on each other.
Adapter::~Adapter() {
  leave_asynchronous(this);
  for (QueuePair* pair : pairs_) delete pair;
  for (auto& [id, listener] : listeners_) delete listener;
  receives_.clear();
  for (auto& source : sources_) {
    if (source->unacknowledged > 0) core().ibv.ack_cq_events(source->cq, source->unacknowledged);
    core().ibv.destroy_cq(source->cq);
  }
  if (completion_channel_) core().ibv.destroy_comp_channel(completion_channel_);
  for (Region* region : regions_) {
    if (!region) continue;
    core().ibv.dereg_mr(region->mr);
    delete region;
  }
  if (pd) core().ibv.dealloc_pd(pd);
  if (channel) core().cm.destroy_event_channel(channel);
  if (epoll_fd_ >= 0) ::close(epoll_fd_);
  if (async_fd_ >= 0) ::close(async_fd_);
}

// ---- the rings ----

uint32_t Adapter::ring(uint32_t count) {
  counters.rings.add(1);
  counters.requests.add(count);
  for (uint32_t i = 0; i < count; i++) execute(requests_[request_head_++ & request_mask_]);
  settle();
  announce();
  return request_mask_ + 1;
}

void Adapter::execute(const WorkRequest& request) {
  QueuePair* target = pair(request.qpn);
  if (!target && request.opcode == RECV) {
    if (SharedReceiveQueue* shared = receives(request.qpn)) return shared->post(request);
  }
  if (!target) return complete(request.opcode, FLUSHED, request.qpn, request.wr_id);
  switch (request.opcode) {
    case WRITE:
    case WRITE_WITH_IMM:
    case READ:
    case SEND:
      return target->post_send(request);
    case RECV:
      return target->post_recv(request);
    default:
      complete(request.opcode, INVALID_REQUEST, request.qpn, request.wr_id);
  }
}

// Hands what was posted to the adapter, then fails the queue pairs that must. Failing takes completions, which may mark
// more.
void Adapter::settle() {
  while (!dirty_.empty() || !failing_.empty() || !dirty_receives_.empty()) {
    std::vector<SharedReceiveQueue*> receives;
    receives.swap(dirty_receives_);
    for (SharedReceiveQueue* each : receives) {
      each->is_dirty = false;
      each->pump();
    }
    std::vector<QueuePair*> dirty;
    dirty.swap(dirty_);
    for (QueuePair* each : dirty) {
      each->is_dirty = false;
      each->pump();
    }
    if (failing_.empty()) continue;
    QueuePair* each = failing_.back();
    failing_.pop_back();
    each->is_failing = false;
    each->fail(each->failure, FLUSHED);
  }
}

void Adapter::mark_dirty(QueuePair* pair) {
  if (pair->is_dirty) return;
  pair->is_dirty = true;
  dirty_.push_back(pair);
}

void Adapter::mark_dirty(SharedReceiveQueue* receives) {
  if (receives->is_dirty) return;
  receives->is_dirty = true;
  dirty_receives_.push_back(receives);
}

void Adapter::own(uint32_t hardware_qpn, QueuePair* pair) { owners_[hardware_qpn] = pair; }

void Adapter::disown(uint32_t hardware_qpn) { owners_.erase(hardware_qpn); }

void Adapter::mark_failing(QueuePair* pair) {
  if (pair->is_failing) return;
  pair->is_failing = true;
  failing_.push_back(pair);
}

void Adapter::take_completions() {
  if (is_taking_) return;
  is_taking_ = true;
  ibv_wc taken[TAKEN_AT_ONCE];
  for (const auto& source : sources_) {
    for (int count = TAKEN_AT_ONCE; count == TAKEN_AT_ONCE;) {
      count = ibv_poll_cq(source->cq, TAKEN_AT_ONCE, taken);
      for (int i = 0; i < count; i++) {
        if (taken[i].wr_id & SharedReceiveQueue::BIT && !(taken[i].wr_id >> 63)) {
          const auto owner = owners_.find(taken[i].qp_num);
          SharedReceiveQueue* shared = receives(static_cast<uint32_t>(taken[i].wr_id >> 32) & 0x3fffffff);
          if (!shared) continue;
          QueuePair* target = owner == owners_.end() ? nullptr : owner->second;
          if (target)
            target->on_shared_receive(taken[i]);
          else
            shared->on_completion(taken[i], 0);
          continue;
        }
        if (QueuePair* target = pair(static_cast<uint32_t>(taken[i].wr_id >> 32) & 0x7fffffff))
          target->on_completion(taken[i]);
      }
    }
  }
  is_taking_ = false;
}

uint32_t Adapter::poll(uint32_t spin_us) {
  if (const uint32_t count = completions_.poll(); count > 0) return count;
  const int64_t until = spin_us > 0 ? now_us() + spin_us : 0;
  for (;;) {
    take_completions();
    settle();
    const uint32_t count = completions_.poll();
    if (count > 0 || until == 0 || now_us() >= until) return count;
  }
}

// After whatever may have pushed completions outside of poll().
void Adapter::announce() {
  if (!completions_.must_wake()) return;
  wants_wake_ = true;
  const uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(async_fd_, &one, sizeof one);
}

void Adapter::arm() {
  completions_.arm();
  for (const auto& source : sources_) ibv_req_notify_cq(source->cq, 0);
}

bool Adapter::take_event(Event& event) {
  if (events_.empty()) return false;
  event = std::move(events_.front());
  events_.pop_front();
  return true;
}

void Adapter::emit(Event event) {
  events_.push_back(std::move(event));
  completions_.push(Completion{0, 0, OPCODE_EVENT, 0, 0, 0, 0, 0, 0, 0});
}

// One notification at a time: whoever polls takes the completions of all, and what is left makes the descriptor ready
// again.
bool Adapter::take_notification() {
  ibv_cq* cq;
  void* unused;
  if (core().ibv.get_cq_event(completion_channel_, &cq, &unused) != 0) return false;
  for (const auto& source : sources_) {
    if (source->cq != cq || ++source->unacknowledged < 256) continue;
    core().ibv.ack_cq_events(cq, source->unacknowledged);
    source->unacknowledged = 0;
  }
  return true;
}

bool Adapter::on_ready() {
  // Nearly always it is a completion: looked for first, without asking who is ready. The others stay ready for the next
  // turn.
  if (take_notification()) {
    wants_wake_ = false;
    counters.wakeups.add(1);
    return true;
  }
  epoll_event ready[4];
  const int count = epoll_wait(epoll_fd_, ready, 4, 0);
  bool has_news = false;
  for (int i = 0; i < count; i++) {
    switch (ready[i].data.u32) {
      case COMPLETIONS:
        has_news |= take_notification();
        break;
      case CONNECTIONS:
        handle_cm_events();
        break;
      case PROCESS_EVENTS:
        take_asynchronous(context);
        handle_asynchronous();
        break;
      case OWN_EVENTS:
        handle_asynchronous();
        break;
    }
  }
  settle();
  announce();
  if (!has_news && !wants_wake_) return false;
  wants_wake_ = false;
  counters.wakeups.add(1);
  return true;
}

// ---- memory ----

uint32_t Adapter::add_region(void* base, uint64_t bytes, uint32_t access, uint32_t lkey, std::string& why) {
  int flags = IBV_ACCESS_LOCAL_WRITE;
  if (access & ACCESS_REMOTE_WRITE) flags |= IBV_ACCESS_REMOTE_WRITE;
  if (access & ACCESS_REMOTE_READ) flags |= IBV_ACCESS_REMOTE_READ;
  std::vector<ibv_mr*> repeated;  // adapters may give a key out again: held until a new one is found
  ibv_mr* mr;
  while ((mr = core().ibv.reg_mr_iova(pd, base, bytes, 0, static_cast<unsigned>(flags))) && mr->rkey != 0 &&
         !rkeys_.insert(mr->rkey).second)
    repeated.push_back(mr);
  if (!mr)
    why = errno == ENOMEM || errno == EAGAIN || errno == EPERM
              ? std::string(strerror(errno)) + ": too little memory may be locked (see `ulimit -l`)"
              : strerror(errno);
  for (ibv_mr* other : repeated) core().ibv.dereg_mr(other);
  if (!mr) return 0;
  if (lkey >= regions_.size()) regions_.resize(lkey + 1, nullptr);
  regions_[lkey] = new Region{static_cast<uint8_t*>(base), bytes, lkey, mr};
  if (mr->rkey != 0) return mr->rkey;
  uint32_t unusable = 0;  // memory without remote access may have no key at all: then one that names nothing
  while (unusable == 0 || !rkeys_.insert(unusable).second) {
    if (getrandom(&unusable, sizeof unusable, 0) != sizeof unusable) unusable++;
  }
  return unusable;
}

void Adapter::deregister(uint32_t lkey) {
  Region* region = lkey < regions_.size() ? regions_[lkey] : nullptr;
  if (!region || region->revoked) return;
  region->revoked = true;
  if (region->references == 0) deregister_now(region);
  announce();
}

void Adapter::release(Region* region) {
  if (region && --region->references == 0 && region->revoked) deregister_now(region);
}

void Adapter::deregister_now(Region* region) {
  core().ibv.dereg_mr(region->mr);
  regions_[region->lkey] = nullptr;
  emit({EventType::region_gone, region->lkey});
  delete region;
}

// ---- connections ----

uint32_t Adapter::add(QueuePair* pair) {
  pairs_.push_back(pair);
  return static_cast<uint32_t>(pairs_.size() - 1);
}

CompletionSource* Adapter::reserve(uint32_t entries, std::string& why) {
  if (!limits.reserves_completions) entries = 0;
  for (const auto& source : sources_) {
    if (source->free < entries) continue;
    source->free -= entries;
    return source.get();
  }
  const uint32_t size = std::max(limits.cq_entries, entries);
  ibv_cq* cq = core().ibv.create_cq(context, static_cast<int>(size), nullptr, completion_channel_, 0);
  if (!cq) {
    why = std::string("cannot create a completion queue of ") + std::to_string(size) + " entries: " + strerror(errno);
    return nullptr;
  }
  ibv_req_notify_cq(cq, 0);
  sources_.push_back(std::make_unique<CompletionSource>(CompletionSource{cq, size - entries}));
  return sources_.back().get();
}

void Adapter::listen(uint32_t id, const std::string& host, uint32_t port, uint32_t receives) {
  auto listener = std::make_unique<Listener>(*this, id, receives);
  std::string why;
  if (!listener->open(host, port, why)) {
    emit({EventType::listen_failed, id, 0, 0, why});
  } else {
    listeners_[id] = listener.release();
    emit({EventType::listening, id, 0, port});
  }
  announce();
}

void Adapter::close_listener(uint32_t id, uint32_t fence_id) {
  if (auto found = listeners_.find(id); found != listeners_.end()) {
    // Connections it is still shaking hands with end with it.
    for (QueuePair* each : std::vector<QueuePair*>(pairs_)) {
      if (each && each->request == id && each->state() == QueuePair::State::connecting) forget(each);
    }
    delete found->second;
    listeners_.erase(found);
  }
  fence(fence_id);
}

// A device that was named keeps to itself: connections leave by an address of its own, the one most like the peer's. To
// an address of its own it needs none.
bool Adapter::source_address(const sockaddr* destination, sockaddr_storage& source) const {
  if (!has_own_name || destination->sa_family != AF_INET) return false;
  const uint32_t wanted = ntohl(reinterpret_cast<const sockaddr_in*>(destination)->sin_addr.s_addr);
  int best = -1;
  ibv_gid gid{};
  for (int index = 0; index < MAX_GIDS && core().ibv.query_gid(context, 1, index, &gid) == 0; index++) {
    if (!IN6_IS_ADDR_V4MAPPED(reinterpret_cast<const in6_addr*>(gid.raw))) continue;
    uint32_t own;
    memcpy(&own, gid.raw + 12, sizeof own);
    const int likeness = std::countl_zero(ntohl(own) ^ wanted);
    if (likeness == 32) return false;
    if (likeness <= best) continue;
    best = likeness;
    sockaddr_in* in = reinterpret_cast<sockaddr_in*>(&source);
    *in = {};
    in->sin_family = AF_INET;
    in->sin_addr.s_addr = own;
  }
  return best >= 0;
}

void Adapter::connect(uint32_t id, const std::string& host, uint32_t port, int timeout_ms, uint32_t receives) {
  Address address;
  if (!Address::parse(host, port, address)) {
    emit({EventType::connect_failed, id, 0, 0, "it is no numeric address and port"});
  } else {
    const uint32_t qpn = add(nullptr);
    pairs_[qpn] = new QueuePair(*this, qpn, id, address.text());
    pairs_[qpn]->share(this->receives(receives));
    sockaddr_storage source{};
    const bool has_source = source_address(address.get(), source);
    pairs_[qpn]->connect(has_source ? reinterpret_cast<sockaddr*>(&source) : nullptr, address.get(), timeout_ms);
  }
  announce();
}

void Adapter::abandon(uint32_t id) {
  for (QueuePair* each : std::vector<QueuePair*>(pairs_)) {
    if (each && each->request == id && each->state() == QueuePair::State::connecting) forget(each);
  }
}

void Adapter::adopt_request(uint32_t listener, const CmEvent& event) {
  if (!is_ours(event.id) || !event.has_greeting || !event.greeting.is_ours()) {
    counters.errors.add(1);
    core().cm.reject(event.id, nullptr, 0);
    core().cm.destroy_id(event.id);
    return;
  }
  const uint32_t qpn = add(nullptr);
  pairs_[qpn] = new QueuePair(*this, qpn, listener, event.id, text_of(rdma_get_peer_addr(event.id)));
  const auto found = listeners_.find(listener);
  pairs_[qpn]->share(found == listeners_.end() ? nullptr : receives(found->second->receives));
  pairs_[qpn]->accept(event);
}

void Adapter::forget(QueuePair* pair) {
  pairs_[pair->qpn] = nullptr;
  std::erase(dirty_, pair);
  std::erase(failing_, pair);
  delete pair;
}

void Adapter::to_error(uint32_t qpn, const std::string& reason) {
  if (QueuePair* target = pair(qpn)) target->fail(reason, FLUSHED);
  settle();
  announce();
}

void Adapter::destroy_queue_pair(uint32_t qpn) {
  if (QueuePair* target = pair(qpn)) {
    target->fail("destroyed", FLUSHED);
    forget(target);
    emit({EventType::queue_pair_gone, 0, qpn});
  }
  settle();
  announce();
}

void Adapter::fence(uint32_t id) {
  emit({EventType::fence, id});
  announce();
}

// ---- shared receive queues ----

uint32_t Adapter::create_receives(uint32_t depth, std::string& why) {
  const uint32_t number = add(nullptr);  // of the queue pairs' numbers, so that a work request can name it
  auto shared = std::make_unique<SharedReceiveQueue>(*this, number, depth);
  if (!shared->open(why)) return 0;
  receives_[number] = std::move(shared);
  return number;
}

bool Adapter::arm_receives(uint32_t number, uint32_t limit) {
  SharedReceiveQueue* shared = receives(number);
  settle();
  return shared && shared->arm_limit(limit);
}

bool Adapter::destroy_receives(uint32_t number) {
  SharedReceiveQueue* shared = receives(number);
  if (!shared) return true;
  if (shared->users > 0) return false;
  take_completions();
  shared->destroy();
  std::erase(dirty_receives_, shared);
  receives_.erase(number);
  emit({EventType::queue_pair_gone, 0, number});
  settle();
  announce();
  return true;
}

void Adapter::handle_cm_events() {
  rdma_cm_event* event = nullptr;
  while (core().cm.get_cm_event(channel, &event) == 0) {
    CmEvent copy{event->event,
                 event->status,
                 event->id,
                 event->param.conn.responder_resources,
                 event->param.conn.initiator_depth,
                 false,
                 {}};
    const bool is_established = event->event == RDMA_CM_EVENT_ESTABLISHED ||
                                event->event == RDMA_CM_EVENT_CONNECT_REQUEST || event->event == RDMA_CM_EVENT_REJECTED;
    if (is_established && event->param.conn.private_data && event->param.conn.private_data_len >= sizeof(Greeting)) {
      memcpy(&copy.greeting, event->param.conn.private_data, sizeof(Greeting));
      copy.has_greeting = true;
    }
    // A connection request comes with a new id whose context is still the listener's.
    CmObject* object = static_cast<CmObject*>(event->event == RDMA_CM_EVENT_CONNECT_REQUEST ? event->listen_id->context
                                                                                            : event->id->context);
    core().cm.ack_cm_event(event);
    object->on_cm_event(copy);
    settle();
  }
}

void Adapter::deliver_asynchronous(const AsyncEvent& event) {
  asynchronous_.push_back(event);
  const uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(async_fd_, &one, sizeof one);
}

void Adapter::handle_asynchronous() {
  uint64_t unused;
  [[maybe_unused]] ssize_t got = read(async_fd_, &unused, sizeof unused);
  for (const AsyncEvent& event : collect_asynchronous(asynchronous_)) {
    const std::string what = core().ibv.event_type_str(event.type);
    const bool is_fatal = event.type == IBV_EVENT_DEVICE_FATAL;
    const bool names_pair =
        event.type == IBV_EVENT_QP_FATAL || event.type == IBV_EVENT_QP_REQ_ERR || event.type == IBV_EVENT_QP_ACCESS_ERR;
    for (QueuePair* each : std::vector<QueuePair*>(pairs_)) {
      if (!each || each->state() != QueuePair::State::connected) continue;
      if (names_pair && each->hardware_qpn() == event.qp_num) each->fail("the adapter reports: " + what, FLUSHED);
      if (event.type == IBV_EVENT_CQ_ERR && each->source() && each->source()->cq == event.cq)
        each->fail("its completion queue overran", FLUSHED);
      if (is_fatal) each->fail("the adapter failed: " + what, FLUSHED);
    }
    if (event.type == IBV_EVENT_SRQ_LIMIT_REACHED) {
      for (const auto& [number, shared] : receives_) {
        if (shared->srq() == event.srq) emit({EventType::receives_low, 0, number});
      }
    }
    if (event.port != 0 || is_fatal || event.type == IBV_EVENT_CQ_ERR)
      emit({EventType::asynchronous, static_cast<uint32_t>(event.type), 0, event.port, what});
  }
}

}  // namespace tartan::verbs
