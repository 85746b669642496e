#include "queue_pair.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "adapter.h"
#include "shared_receive_queue.h"
#include "statuses.h"

namespace tartan::verbs {

namespace {

constexpr uint32_t CHAIN = 32;  // requests handed to the adapter by one call
constexpr uint32_t LONGEST_UNSIGNALLED = 16;
constexpr uint64_t RECV_BIT = uint64_t{1} << 63;
constexpr uint8_t RETRIES = 6;       // 7 means for ever to some adapters: a dead peer would never complete
constexpr uint8_t RNR_FOR_EVER = 7;  // a SEND waits for its receive however long that takes
constexpr uint8_t RNR_TIMER = 6;     // 80 µs between two looks whether there is one

uint64_t name(uint64_t bit, uint32_t qpn, uint32_t seq) { return bit | uint64_t{qpn} << 32 | seq; }

}  // namespace

QueuePair::QueuePair(Adapter& adapter, uint32_t qpn, uint32_t request, std::string remote)
    : qpn(qpn),
      request(request),
      adapter_(adapter),
      is_active_(true),
      remote_(std::move(remote)),
      sends_(256, adapter.counters.allocations),
      recvs_(256, adapter.counters.allocations) {}

QueuePair::QueuePair(Adapter& adapter, uint32_t qpn, uint32_t listener, rdma_cm_id* id, std::string remote)
    : qpn(qpn),
      request(listener),
      adapter_(adapter),
      is_active_(false),
      remote_(std::move(remote)),
      id_(id),
      sends_(256, adapter.counters.allocations),
      recvs_(256, adapter.counters.allocations) {
  id_->context = static_cast<CmObject*>(this);
}

QueuePair::~QueuePair() {
  destroy_connection();
  if (!shared_) return;
  deliver_early(0);
  shared_->users--;
}

void QueuePair::share(SharedReceiveQueue* receives) {
  shared_ = receives;
  if (shared_) shared_->users++;
}

uint32_t QueuePair::completions_reserved() const {
  return adapter_.limits.reserves_completions
             ? adapter_.limits.send_depth + (shared_ ? shared_->depth() : adapter_.limits.recv_depth)
             : 0;
}

// ---- connecting ----

void QueuePair::connect(const sockaddr* source, const sockaddr* destination, int timeout_ms) {
  timeout_ms_ = timeout_ms;
  if (core().cm.create_id(adapter_.channel, &id_, static_cast<CmObject*>(this), RDMA_PS_TCP) != 0) {
    id_ = nullptr;
    return give_up(strerror(errno));
  }
  tune();
  if (core().cm.resolve_addr(id_, const_cast<sockaddr*>(source), const_cast<sockaddr*>(destination), timeout_ms) != 0) {
    give_up(errno == ENODEV || errno == EADDRNOTAVAIL ? "no RDMA device leads there" : strerror(errno));
  }
}

void QueuePair::tune() {
  uint8_t timeout = adapter_.limits.ack_timeout;
  // older kernels keep their own
  core().cm.set_option(id_, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof timeout);
}

bool QueuePair::create() {
  const Limits& limits = adapter_.limits;
  if (!adapter_.is_ours(id_)) {
    failure = std::string("the way there is by ") + core().ibv.get_device_name(id_->verbs->device) +
              ", this device is " + adapter_.name();
    return false;
  }
  std::string why;
  source_ = adapter_.reserve(completions_reserved(), why);
  if (!source_) {
    failure = why;
    return false;
  }
  ibv_qp_init_attr attributes{};
  attributes.send_cq = attributes.recv_cq = source_->cq;
  attributes.qp_type = IBV_QPT_RC;
  attributes.cap = {limits.send_depth, shared_ ? 0 : limits.recv_depth, 2, shared_ ? 0u : 1u, limits.max_inline};
  if (shared_) attributes.srq = shared_->srq();
  if (core().cm.create_qp(id_, adapter_.pd, &attributes) != 0) {
    failure = std::string("cannot create a queue pair: ") + strerror(errno);
    return false;
  }
  max_inline_ = attributes.cap.max_inline_data;
  if (shared_) adapter_.own(id_->qp->qp_num, this);
  return true;
}

void QueuePair::accept(const CmEvent& event) {
  tune();
  if (!create()) {
    const Greeting greeting = Greeting::make();
    core().cm.reject(id_, &greeting, sizeof greeting);
    return give_up(failure);
  }
  const Greeting greeting = Greeting::make();
  rdma_conn_param parameters{};
  parameters.private_data = &greeting;
  parameters.private_data_len = sizeof greeting;
  parameters.responder_resources = event.responder_resources;
  parameters.initiator_depth = event.initiator_depth;
  parameters.rnr_retry_count = RNR_FOR_EVER;
  if (core().cm.accept(id_, &parameters) != 0) give_up(std::string("cannot accept: ") + strerror(errno));
}

void QueuePair::on_cm_event(const CmEvent& event) {
  switch (event.type) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
      if (!adapter_.is_ours(id_))
        return give_up(std::string("the way there is by ") + core().ibv.get_device_name(id_->verbs->device) +
                       ", this device is " + adapter_.name());
      if (core().cm.resolve_route(id_, timeout_ms_) != 0) give_up(strerror(errno));
      return;
    case RDMA_CM_EVENT_ROUTE_RESOLVED: {
      if (!create()) return give_up(failure);
      const Greeting greeting = Greeting::make();
      rdma_conn_param parameters{};
      parameters.private_data = &greeting;
      parameters.private_data_len = sizeof greeting;
      parameters.responder_resources = static_cast<uint8_t>(std::min(adapter_.attributes.max_qp_rd_atom, 16));
      parameters.initiator_depth = static_cast<uint8_t>(std::min(adapter_.attributes.max_qp_init_rd_atom, 16));
      parameters.retry_count = RETRIES;
      parameters.rnr_retry_count = RNR_FOR_EVER;
      if (core().cm.connect(id_, &parameters) != 0) give_up(strerror(errno));
      return;
    }
    case RDMA_CM_EVENT_ESTABLISHED: {
      if (state_ != State::connecting) return;
      if (is_active_ && !(event.has_greeting && event.greeting.is_ours()))
        return give_up("it does not speak this protocol and version");
      ibv_qp_attr attributes{};
      attributes.min_rnr_timer = RNR_TIMER;
      core().ibv.modify_qp(id_->qp, &attributes, IBV_QP_MIN_RNR_TIMER);  // the connection manager's own is 0.65 s
      state_ = State::connected;
      adapter_.emit({is_active_ ? EventType::connected : EventType::accepted, request, qpn, 0, remote_});
      if (shared_) deliver_early(qpn);
      return;
    }
    case RDMA_CM_EVENT_ADDR_ERROR:
    case RDMA_CM_EVENT_ROUTE_ERROR:
      return give_up("no RDMA route leads there");
    case RDMA_CM_EVENT_UNREACHABLE:
      return give_up("it does not answer");
    case RDMA_CM_EVENT_REJECTED:
      if (event.status == 28)
        return give_up(event.has_greeting && event.greeting.is_ours()
                           ? "it cannot take another connection"
                           : "it refused, not speaking this protocol and version");
      return give_up("nobody listens there over RDMA");
    case RDMA_CM_EVENT_CONNECT_ERROR:
      return give_up(std::string("the connection failed: ") +
                     strerror(event.status < 0 ? -event.status : event.status));
    case RDMA_CM_EVENT_DISCONNECTED:
      if (state_ == State::connecting) return give_up("it closed the connection instead of answering");
      return fail("the peer closed the connection", RETRY_EXCEEDED);
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
      if (state_ == State::connecting) return give_up("the RDMA device was removed");
      return fail("the RDMA device was removed", FLUSHED);
    default:
      return;
  }
}

// Before the connection stands: whoever connects is told, whoever listens only counts.
void QueuePair::give_up(const std::string& observation) {
  adapter_.counters.errors.add(1);
  if (state_ != State::connecting) return fail(observation, FLUSHED);
  if (is_active_) adapter_.emit({EventType::connect_failed, request, 0, 0, observation});
  adapter_.forget(this);
}

// ---- posting ----

bool QueuePair::resolve(const GatherEntry& gather, Piece& piece) {
  Region* region = adapter_.local(gather.lkey);
  if (!region || !region->contains(gather.offset, gather.length)) return false;
  piece = {region, gather.offset, gather.length};
  adapter_.hold(region);
  return true;
}

void QueuePair::post_send(const WorkRequest& request) {
  if (state_ != State::connected) return adapter_.complete(request.opcode, FLUSHED, qpn, request.wr_id);
  SendEntry& entry = sends_.push();
  entry = {};
  entry.opcode = request.opcode;
  entry.flags = request.flags;
  entry.wr_id = request.wr_id;
  entry.imm = request.rdma.imm;
  entry.rkey = request.rdma.rkey;
  entry.remote_offset = request.rdma.remote_offset;
  for (uint32_t i = 0; i < request.gather_count && i < 2; i++) {
    if (!resolve(request.rdma.gather[i], entry.piece[i]) || entry.piece[i].length > UINT32_MAX - entry.length) {
      entry.status = LOCAL_PROTECTION_ERROR;
      break;
    }
    entry.length += entry.piece[i].length;
    entry.pieces++;
  }
  adapter_.mark_dirty(this);
}

void QueuePair::post_recv(const WorkRequest& request) {
  if (shared_) return adapter_.complete(RECV, INVALID_REQUEST, qpn, request.wr_id);
  if (state_ != State::connected) return adapter_.complete(RECV, FLUSHED, qpn, request.wr_id);
  RecvEntry entry{request.wr_id, request.gather_count > 0, {nullptr, 0, 0}};
  if (entry.has_buffer && !resolve(request.rdma.gather[0], entry.piece)) {
    adapter_.complete(RECV, LOCAL_PROTECTION_ERROR, qpn, request.wr_id);
    return will_fail("a receive named memory outside its region");
  }
  recvs_.push() = entry;
  adapter_.mark_dirty(this);
}

void QueuePair::pump() {
  if (state_ != State::connected) return;
  pump_recvs();
  pump_sends();
}

void QueuePair::pump_recvs() {
  ibv_recv_wr requests[CHAIN];
  ibv_sge pieces[CHAIN];
  while (next_recv_ != recvs_.tail() && next_recv_ - recvs_.head() < adapter_.limits.recv_depth) {
    const uint32_t first = next_recv_;
    uint32_t count = 0;
    for (; count < CHAIN && next_recv_ != recvs_.tail() && next_recv_ - recvs_.head() < adapter_.limits.recv_depth;
         count++, next_recv_++) {
      const RecvEntry& entry = recvs_.at(next_recv_);
      const bool has_piece = entry.has_buffer && entry.piece.length > 0;
      if (has_piece) pieces[count] = {entry.piece.offset, entry.piece.length, entry.piece.region->mr->lkey};
      requests[count] = {};
      requests[count].wr_id = name(RECV_BIT, qpn, next_recv_);
      requests[count].sg_list = &pieces[count];
      requests[count].num_sge = has_piece ? 1 : 0;
      if (count > 0) requests[count - 1].next = &requests[count];
    }
    ibv_recv_wr* bad = nullptr;
    const int error = ibv_post_recv(id_->qp, requests, &bad);
    if (error == 0) continue;
    next_recv_ = first + static_cast<uint32_t>(bad ? bad - requests : 0);
    if (error == ENOMEM && next_recv_ != recvs_.head()) return;  // its completions make room
    return will_fail(std::string("the adapter refused a receive: ") + strerror(error));
  }
}

void QueuePair::pump_sends() {
  ibv_send_wr requests[CHAIN];
  ibv_sge pieces[CHAIN][2];
  const uint32_t depth = adapter_.limits.send_depth;
  while (next_send_ != sends_.tail() && next_send_ - sends_.head() < depth && sends_.at(next_send_).status == SUCCESS) {
    const uint32_t first = next_send_;
    uint32_t count = 0;
    uint64_t bytes = 0;
    for (; count < CHAIN && next_send_ != sends_.tail() && next_send_ - sends_.head() < depth &&
           sends_.at(next_send_).status == SUCCESS;
         count++, next_send_++) {
      const SendEntry& entry = sends_.at(next_send_);
      ibv_send_wr& wr = requests[count];
      wr = {};
      wr.wr_id = name(0, qpn, next_send_);
      wr.sg_list = pieces[count];
      // Small requests travel inside the descriptor. The addresses are then this process's, not the region's.
      const bool is_inline = entry.length > 0 && entry.length <= max_inline_ && entry.opcode != READ;
      for (uint32_t i = 0; i < entry.pieces; i++) {
        const Piece& piece = entry.piece[i];
        if (piece.length == 0) continue;
        const uint64_t at = is_inline ? reinterpret_cast<uintptr_t>(piece.region->base) + piece.offset : piece.offset;
        pieces[count][wr.num_sge++] = {at, piece.length, piece.region->mr->lkey};
      }
      bytes += entry.opcode == READ ? 0 : entry.length;
      if (is_inline) wr.send_flags |= IBV_SEND_INLINE;
      if ((entry.flags & SIGNALED) || ++unsignalled_ >= LONGEST_UNSIGNALLED) {
        wr.send_flags |= IBV_SEND_SIGNALED;
        unsignalled_ = 0;
      }
      switch (entry.opcode) {
        case WRITE:
          wr.opcode = IBV_WR_RDMA_WRITE;
          break;
        case WRITE_WITH_IMM:
          wr.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
          wr.imm_data = htonl(entry.imm);
          break;
        case READ:
          wr.opcode = IBV_WR_RDMA_READ;
          break;
        default:
          wr.opcode = IBV_WR_SEND;
          break;
      }
      if (entry.opcode != SEND) {
        wr.wr.rdma.remote_addr = entry.remote_offset;
        wr.wr.rdma.rkey = entry.rkey;
      }
      if (count > 0) requests[count - 1].next = &wr;
    }
    // The last of a batch: something must retire it when nothing follows.
    const bool more =
        next_send_ != sends_.tail() && next_send_ - sends_.head() < depth && sends_.at(next_send_).status == SUCCESS;
    if (!more) {
      requests[count - 1].send_flags |= IBV_SEND_SIGNALED;
      unsignalled_ = 0;
    }
    ibv_send_wr* bad = nullptr;
    const int error = ibv_post_send(id_->qp, requests, &bad);
    adapter_.counters.bytes_sent.add(bytes);
    if (error == 0) continue;
    next_send_ = first + static_cast<uint32_t>(bad ? bad - requests : 0);
    return will_fail(std::string("the adapter refused a request: ") + strerror(error));
  }
  if (next_send_ == sends_.head() && next_send_ != sends_.tail() && sends_.front().status != SUCCESS) {
    first_status_ = sends_.front().status;
    will_fail("a request named memory outside its region");
  }
}

// ---- completions ----

void QueuePair::retire(SendEntry& entry, uint8_t status) {
  if (status != SUCCESS || (entry.flags & SIGNALED)) adapter_.complete(entry.opcode, status, qpn, entry.wr_id);
  for (const Piece& piece : entry.piece) adapter_.release(piece.region);
  sends_.pop();
}

void QueuePair::retire_before(uint32_t seq) {
  while (static_cast<int32_t>(seq - sends_.head()) > 0 && sends_.head() != next_send_) retire(sends_.front(), SUCCESS);
}

void QueuePair::on_completion(const ibv_wc& wc) {
  const uint32_t seq = static_cast<uint32_t>(wc.wr_id);
  if (wc.wr_id & RECV_BIT) {
    if (seq != recvs_.head() || recvs_.head() == next_recv_) return;  // of before a failure
    if (wc.status != IBV_WC_SUCCESS) {
      if (state_ == State::connected) first_recv_status_ = recv_status(wc.status);
      return will_fail(recv_failure(wc.status));
    }
    const bool has_imm = (wc.wc_flags & IBV_WC_WITH_IMM) != 0;
    const RecvEntry entry = recvs_.front();
    recvs_.pop();
    adapter_.counters.bytes_received.add(wc.byte_len);
    adapter_.complete(wc.opcode == IBV_WC_RECV_RDMA_WITH_IMM ? RECV_WRITE_WITH_IMM : RECV, SUCCESS, qpn, entry.wr_id,
                      wc.byte_len, has_imm ? ntohl(wc.imm_data) : 0);
    adapter_.release(entry.piece.region);
    if (next_recv_ != recvs_.tail()) adapter_.mark_dirty(this);
    return;
  }
  // What came before the first failure was done, signalled or not; what comes after it is flushed here.
  if (has_failed_send_ || static_cast<int32_t>(seq - sends_.head()) < 0 || static_cast<int32_t>(next_send_ - seq) <= 0)
    return;
  retire_before(seq);
  if (wc.status != IBV_WC_SUCCESS) {
    has_failed_send_ = true;
    if (state_ == State::connected && first_status_ == FLUSHED) first_status_ = send_status(wc.status);
    return will_fail(send_failure(wc.status));
  }
  retire_before(seq + 1);
  if (next_send_ != sends_.tail()) adapter_.mark_dirty(this);
}

// The peer may have sent before the connection manager has said that it is there.
void QueuePair::on_shared_receive(const ibv_wc& wc) {
  if (state_ == State::connecting) return early_.push_back(wc);
  shared_->on_completion(wc, qpn);
  if (wc.status != IBV_WC_SUCCESS) will_fail(recv_failure(wc.status));
}

void QueuePair::deliver_early(uint32_t to) {
  for (const ibv_wc& wc : early_) shared_->on_completion(wc, to);
  early_.clear();
}

// ---- the end ----

// From within posting or taking completions: the adapter fails this queue pair when that is done.
void QueuePair::will_fail(const std::string& reason) {
  if (state_ != State::connected || is_failing) return;
  failure = reason;
  adapter_.counters.errors.add(1);
  adapter_.mark_failing(this);
}

void QueuePair::fail(const std::string& reason, uint8_t status, uint8_t recv_status) {
  if (state_ != State::connected) return;
  adapter_.take_completions();  // what is done is done; and what failed by itself says better why
  if (first_status_ == FLUSHED) first_status_ = status;
  if (first_recv_status_ == FLUSHED) first_recv_status_ = recv_status;
  state_ = State::error;
  adapter_.emit({EventType::queue_pair_error, 0, qpn, 0, is_failing ? failure : reason});
  core().cm.disconnect(id_);  // into the error state, and the peer is told
  adapter_.take_completions();
  destroy_connection();
  flush();
}

// Afterwards the adapter touches no memory in this queue pair's name.
void QueuePair::destroy_connection() {
  if (!id_) return;
  if (id_->qp && shared_) adapter_.disown(id_->qp->qp_num);
  if (id_->qp) core().cm.destroy_qp(id_);
  if (source_) source_->free += completions_reserved();
  source_ = nullptr;
  core().cm.destroy_id(id_);
  id_ = nullptr;
}

void QueuePair::flush() {
  for (uint8_t status = first_status_; !sends_.empty(); status = FLUSHED) retire(sends_.front(), status);
  for (uint8_t status = first_recv_status_; !recvs_.empty(); status = FLUSHED) {
    const RecvEntry entry = recvs_.front();
    recvs_.pop();
    adapter_.complete(RECV, status, qpn, entry.wr_id);
    adapter_.release(entry.piece.region);
  }
}

}  // namespace tartan::verbs
