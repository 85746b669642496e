#include "queue_pair.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace tartan {

namespace {
constexpr uint32_t QUEUE_ENTRIES = 256;  // per queue at first; the rings grow
constexpr int64_t LINGER_MS = 1000;
}  // namespace

QueuePair::QueuePair(Services& services, uint32_t qpn, Descriptor fd, TransportKind transport, std::string remote)
    : qpn(qpn),
      transport(transport),
      remote(std::move(remote)),
      services_(services),
      fd_(std::move(fd)),
      sends_(QUEUE_ENTRIES, services.counters.allocations),
      recvs_(QUEUE_ENTRIES, services.counters.allocations),
      answers_(MAX_OUTSTANDING_READS, services.counters.allocations) {}

bool QueuePair::start() {
  interest_ = EPOLLIN | EPOLLRDHUP;
  return services_.watch(fd_, this, interest_);
}

bool QueuePair::resolve(const GatherEntry& gather, Piece& piece) {
  Region* region = services_.regions.local(gather.lkey);
  if (!region || !region->contains(gather.offset, gather.length)) return false;
  piece = {region->base + gather.offset, gather.length, region};
  services_.hold(region);
  return true;
}

void QueuePair::post_send(const WorkRequest& request) {
  if (is_flushed()) {
    services_.complete(request.opcode, FLUSHED, qpn, request.wr_id);
    return;
  }
  SendEntry& entry = sends_.push();
  entry = {};
  entry.opcode = request.opcode;
  entry.flags = request.flags;
  entry.wr_id = request.wr_id;
  entry.imm = request.rdma.imm;
  entry.rkey = request.rdma.rkey;
  entry.remote_offset = request.rdma.remote_offset;
  for (uint32_t i = 0; i < request.gather_count && i < 2; i++) {
    if (!resolve(request.rdma.gather[i], entry.pieces[i])) {
      entry.status = LOCAL_PROTECTION_ERROR;
      break;
    }
    if (entry.pieces[i].length > UINT32_MAX - entry.length) {
      entry.status = LOCAL_PROTECTION_ERROR;
      break;
    }
    entry.length += entry.pieces[i].length;
  }
  mark_dirty();
}

void QueuePair::post_recv(const WorkRequest& request) {
  if (is_flushed()) {
    services_.complete(RECV, FLUSHED, qpn, request.wr_id);
    return;
  }
  Piece piece{nullptr, 0, nullptr};
  if (request.gather_count > 0 && !resolve(request.rdma.gather[0], piece)) {
    services_.complete(RECV, LOCAL_PROTECTION_ERROR, qpn, request.wr_id);
    fail("a receive named memory outside its region", FLUSHED);
    return;
  }
  recvs_.push() = {request.wr_id, piece.length, piece.at, piece.region};
  if (must_announce_recvs() || inbound_ == Inbound::needs_recv_for_send || inbound_ == Inbound::needs_recv_for_imm)
    mark_dirty();
}

void QueuePair::mark_dirty() {
  if (is_dirty) return;
  is_dirty = true;
  services_.dirty.push_back(this);
}

void QueuePair::complete_send(SendEntry& entry, uint8_t status) {
  const bool framed = static_cast<int32_t>(next_ - sends_.head()) > 0;
  if (entry.opcode == READ && framed) reads_outstanding_--;
  if (status != SUCCESS || (entry.flags & SIGNALED)) services_.complete(entry.opcode, status, qpn, entry.wr_id);
  for (Piece& piece : entry.pieces) services_.release(piece.region);
  sends_.pop();
}

void QueuePair::complete_acknowledged() {
  if (state_ != State::connected) return;
  while (sends_.head() != acked_) {
    SendEntry& entry = sends_.front();
    if (entry.opcode == READ && !entry.answered) return;
    complete_send(entry, SUCCESS);
  }
  if (sends_.head() == next_ && next_ != sends_.tail() && sends_.front().status != SUCCESS) {
    fail("a request named memory outside its region", sends_.front().status);
  }
}

// The peer did what it must not: tell it which request and why, then end.
void QueuePair::refuse(uint8_t status, uint32_t seq, const std::string& reason) {
  if (state_ != State::connected) return;
  if (status == REMOTE_ACCESS_ERROR) services_.counters.refused_accesses.add(1);
  nak_pending_ = true;
  nak_status_ = status;
  nak_seq_ = seq;
  leave_connected(reason, FLUSHED);
  state_ = State::draining;
  drain_by_ms_ = monotonic_ms() + DRAIN_MS;
  services_.set_deadline(this, monotonic_ms() + NAK_DEADLINE_MS);
  drop_unbegun_requests();
  mark_dirty();
}

// Requests framed but not begun are withdrawn; answers to the peer's earlier READs still go out before the NAK, and so
// does a frame half written. A bare frame may have been promised by `follow`: an ACK takes its place.
void QueuePair::drop_unbegun_requests() {
  uint32_t to = out_sent_ > 0 ? out_head_ + 1 : out_head_;
  for (uint32_t from = to; from != out_tail_; from++) {
    OutFrame& frame = out_[from % OUT_FRAMES];
    if (frame.is_request) {
      if (frame.length[0] + frame.length[1] > 0) continue;
      const FrameHeader promised = frame.header;
      frame.header = {};
      frame.header.type = FRAME_ACK;
      frame.header.follow = promised.follow;
      frame.header.ack = promised.ack;
      frame.is_request = false;
    }
    if (to != from) out_[to % OUT_FRAMES] = std::move(frame);
    to++;
  }
  out_tail_ = to;
}

void QueuePair::fail(const std::string& reason, uint8_t status) {
  if (is_flushed()) return;
  if (state_ == State::connected) leave_connected(reason, status);  // else: no NAK after all
  close_stream();
  flush_into(State::closed);
}

void QueuePair::abandon(const std::string& reason) {
  is_abandoned_ = state_ == State::connected;  // a NAK that is on its way has to arrive
  fail(reason, FLUSHED);
}

void QueuePair::leave_connected(const std::string& reason, uint8_t status) {
  first_status_ = status;
  placing_ = nullptr;
  payload_at_ = nullptr;
  services_.emit({EventType::queue_pair_error, 0, qpn, 0, 0, reason});
}

// Nothing touches memory from here on: the stream is closed, or its last frame is written and input is thrown away.
void QueuePair::flush_into(State state) {
  state_ = state;
  for (; out_head_ != out_tail_; out_head_++) {
    OutFrame& frame = out_[out_head_ % OUT_FRAMES];
    services_.release(frame.answered);
    frame.fd.reset();
  }
  for (; !answers_.empty(); answers_.pop()) services_.release(answers_.front().region);
  peer_memory_.clear();
  for (uint8_t status = first_status_; !sends_.empty(); status = FLUSHED) complete_send(sends_.front(), status);
  for (; !recvs_.empty(); recvs_.pop()) {
    services_.complete(RECV, FLUSHED, qpn, recvs_.front().wr_id);
    services_.release(recvs_.front().region);
  }
  // The numbers agree that nothing is under way: whatever is said of a request from now on is said of none.
  next_ = written_ = acked_ = sends_.head();
  nak_pending_ = waits_for_map_ = false;
  maps_.clear();
  unmaps_.clear();
  report_gone_if_wanted();
}

// In CONNECTED and DRAINING flush_into(CLOSED) follows at once.
void QueuePair::close_stream() {
  if (!fd_) return;
  if (is_abandoned_ && transport == TransportKind::tcp) {
    const linger reset{1, 0};
    setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  }
  fd_.reset();
  services_.set_deadline(this, 0);
  if (state_ != State::lingering) return;
  state_ = State::closed;
  report_gone_if_wanted();
}

void QueuePair::destroy() {
  wants_destroy_ = true;
  if (state_ == State::connected) fail("destroyed", FLUSHED);
  report_gone_if_wanted();
}

// While a NAK drains or lingers, destroy() waits: closing at once could reset the connection under it.
void QueuePair::report_gone_if_wanted() {
  if (!wants_destroy_ || is_reported_gone_ || state_ != State::closed) return;
  is_reported_gone_ = true;
  services_.queue_pairs.erase(qpn);
  for (uint32_t rkey : granted_rkeys) services_.regions.ungrant(rkey, qpn);
  services_.emit({EventType::queue_pair_gone, 0, qpn});
  services_.bury(this);
}

void QueuePair::on_revoke(Region* region) {
  if (is_flushed()) return;
  if (transport == TransportKind::shm) {
    for (size_t i = 0; i < mapped_by_peer_.size(); i++) {
      if (mapped_by_peer_[i] != region->rkey) continue;
      mapped_by_peer_[i] = mapped_by_peer_.back();
      mapped_by_peer_.pop_back();
      unmaps_.push_back(region->rkey);
      mark_dirty();
      break;
    }
  }
  if (placing_ == region)
    refuse(REMOTE_ACCESS_ERROR, current_.seq, "the peer was writing to a region as it was deregistered");
}

void QueuePair::on_deadline() {
  if (state_ == State::draining) return fail("", FLUSHED);
  if (state_ == State::lingering) close_stream();  // long enough for the peer to read the NAK
}

void QueuePair::on_ready(uint32_t epoll_events) {
  if (epoll_events & EPOLLOUT) out_blocked_ = false;
  const bool has_ended = (epoll_events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)) != 0;
  const bool has_input = has_ended || (epoll_events & EPOLLIN) != 0;
  switch (state_) {
    case State::connected:
      if (has_input && (inbound_ == Inbound::header || inbound_ == Inbound::payload))
        read_in(1 << 21);
      else if (has_ended)
        fail("the peer closed the connection", RETRY_EXCEEDED);  // while its request waited for a receive
      break;
    case State::draining:
    case State::lingering:
      if (has_input) discard_input();
      break;
    case State::closed:
      return;
  }
  pump();
}

void QueuePair::pump() {
  if (state_ == State::connected) resume();
  if (state_ == State::connected) complete_acknowledged();
  if (state_ == State::connected || state_ == State::draining) send_frames();
  if (state_ == State::draining && !nak_pending_ && out_head_ == out_tail_) {
    shutdown(fd_.get(), SHUT_WR);
    services_.set_deadline(this, monotonic_ms() + LINGER_MS);
    flush_into(State::lingering);
  }
  if (state_ != State::closed) update_interest();
}

// As much as the socket takes, within a budget. A failure in between leaves the loop: its state has none of this.
void QueuePair::send_frames() {
  for (int rounds = 0; !out_blocked_ && !is_flushed(); rounds++) {
    fill();
    if (out_head_ == out_tail_) return;
    if (rounds == 16) return mark_dirty();
    if (!write_out()) return;
  }
}

void QueuePair::update_interest() {
  uint32_t wanted = EPOLLIN;  // LINGERING: only to learn that the peer has closed
  if (!is_flushed()) {
    const bool is_paused = state_ == State::connected && inbound_ != Inbound::header && inbound_ != Inbound::payload;
    wanted = EPOLLRDHUP;
    if (!is_paused) wanted |= EPOLLIN;
    if (out_blocked_) wanted |= EPOLLOUT;
  }
  if (wanted == interest_) return;
  interest_ = wanted;
  services_.watch(fd_, this, wanted);
}

}  // namespace tartan
