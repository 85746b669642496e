// The incoming half of a queue pair's stream. Headers are staged, payloads are received straight into the memory they
// are for; a header is checked completely before one byte of its payload is placed.
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "queue_pair.h"

namespace tartan {

namespace {
constexpr size_t MAX_MAPPED_BY_PEER = 1024;
constexpr size_t MAX_MAPS_QUEUED = 16;
constexpr size_t MAX_FDS_QUEUED = 4;
}  // namespace

long QueuePair::receive(iovec* pieces, int count) {
  if (transport == TransportKind::tcp) return readv(fd_.get(), pieces, count);
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = static_cast<size_t>(count);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * MAX_FDS_QUEUED)];
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = recvmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) return got;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t fds = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < fds; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      Descriptor passed(fd);
      if (state_ == State::connected && received_fds_.size() < MAX_FDS_QUEUED)
        received_fds_.push_back(std::move(passed));
    }
  }
  return got;
}

void QueuePair::read_in(uint32_t budget) {
  uint64_t taken = 0;
  for (int calls = 0; calls < 128 && taken < budget; calls++) {
    if (state_ != State::connected) return;
    if (inbound_ != Inbound::header && inbound_ != Inbound::payload) return;
    // Between frames the staging area is empty or holds the beginning of one header.
    if (staged_from_ > 0) {
      memmove(staging_, staging_ + staged_from_, staged_to_ - staged_from_);
      staged_to_ -= staged_from_;
      staged_from_ = 0;
    }
    iovec pieces[2];
    int count = 0;
    const bool has_payload = inbound_ == Inbound::payload;
    if (has_payload) pieces[count++] = {payload_at_, payload_left_};
    pieces[count++] = {staging_ + staged_to_, headers_allowed_ * sizeof(FrameHeader) - staged_to_};
    const size_t wanted = (has_payload ? payload_left_ : 0) + pieces[count - 1].iov_len;
    const long got = receive(pieces, count);
    if (got == 0) return fail("the peer closed the connection", RETRY_EXCEEDED);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return;
      return fail(std::string("the connection broke: ") + strerror(errno), RETRY_EXCEEDED);
    }
    taken += static_cast<uint64_t>(got);
    uint32_t left = static_cast<uint32_t>(got);
    if (has_payload) {
      const uint32_t part = left < payload_left_ ? left : payload_left_;
      payload_at_ += part;
      payload_left_ -= part;
      left -= part;
      services_.counters.bytes_received.add(part);
      if (payload_left_ > 0) continue;
      staged_to_ += left;
      payload_placed();
    } else {
      staged_to_ += left;
    }
    parse_headers();
    if (static_cast<size_t>(got) < wanted && transport == TransportKind::tcp) return;  // the socket is empty
  }
}

void QueuePair::parse_headers() {
  while (state_ == State::connected && inbound_ == Inbound::header &&
         staged_to_ - staged_from_ >= sizeof(FrameHeader)) {
    memcpy(&current_, staging_ + staged_from_, sizeof(FrameHeader));
    staged_from_ += sizeof(FrameHeader);
    const uint32_t staged_headers = (staged_to_ - staged_from_) / sizeof(FrameHeader);
    headers_allowed_ = (current_.follow < MAX_FOLLOW ? current_.follow : MAX_FOLLOW) + 1u;
    if (headers_allowed_ < staged_headers + 1) headers_allowed_ = staged_headers + 1;
    handle_frame();
  }
}

void QueuePair::malformed(const char* what) {
  services_.counters.errors.add(1);
  refuse(REMOTE_INVALID_REQUEST, current_.seq, std::string("the peer sent a malformed frame: ") + what);
}

bool QueuePair::accept_ack(uint32_t ack) {
  if (ack - acked_ > written_ - acked_) return false;  // acknowledges what was never sent
  acked_ = ack;
  complete_acknowledged();
  return true;
}

void QueuePair::handle_frame() {
  const bool is_shm = transport == TransportKind::shm;
  if (current_.zero != 0 || (current_.status != 0 && current_.type != FRAME_NAK))
    return malformed("reserved fields are not zero");
  if (!accept_ack(current_.ack)) return malformed("it acknowledges requests that were not sent");
  if (static_cast<int32_t>(current_.recvs - peer_recvs_) > 0) peer_recvs_ = current_.recvs;
  if (state_ != State::connected) return;  // a local error surfaced as earlier requests completed
  switch (current_.type) {
    case FRAME_WRITE:
    case FRAME_WRITE_IMM:
      return handle_write(false);
    case FRAME_PLACED:
    case FRAME_PLACED_IMM:
      return is_shm ? handle_write(true) : malformed("shared memory over TCP");
    case FRAME_SEND:
      return handle_send();
    case FRAME_READ:
      return handle_read();
    case FRAME_READ_DATA:
      return handle_read_data();
    case FRAME_ACK:
      return;
    case FRAME_NAK:
      if (current_.status != REMOTE_ACCESS_ERROR && current_.status != REMOTE_INVALID_REQUEST)
        return malformed("unknown refusal");
      return fail(current_.status == REMOTE_ACCESS_ERROR ? "the peer refused access to its memory"
                                                         : "the peer refused a request as invalid",
                  current_.status);
    case FRAME_MAP:
      return is_shm ? handle_map() : malformed("shared memory over TCP");
    case FRAME_MAP_FD:
      return is_shm ? handle_map_fd() : malformed("shared memory over TCP");
    case FRAME_UNMAP:
      if (!is_shm) return malformed("shared memory over TCP");
      peer_memory_.drop(current_.rkey);
      return;
    default:
      return malformed("unknown type");
  }
}

void QueuePair::handle_write(bool placed_already) {
  if (current_.seq != executed_) return malformed("out of sequence");
  Region* region = services_.regions.remote(current_.rkey, qpn);  // checked for no bytes too: the key must be good
  if (!region || !(region->access & ACCESS_REMOTE_WRITE) || !region->contains(current_.offset, current_.length)) {
    return refuse(REMOTE_ACCESS_ERROR, current_.seq, "the peer wrote outside what it was granted");
  }
  if (placed_already) services_.counters.bytes_received.add(current_.length);
  if (placed_already || current_.length == 0) return payload_placed();
  placing_ = region;
  expect_payload(region->base + current_.offset);
}

// The next bytes of the stream are the current frame's payload.
void QueuePair::expect_payload(uint8_t* at) {
  if (staged_from_ != staged_to_) return malformed("a payload where headers were announced");
  payload_at_ = at;
  payload_left_ = current_.length;
  inbound_ = Inbound::payload;
}

void QueuePair::handle_send() {
  if (current_.seq != executed_) return malformed("out of sequence");
  if (recvs_.empty()) {
    inbound_ = Inbound::needs_recv_for_send;
    return;
  }
  RecvEntry& recv = recvs_.front();
  if (current_.length > recv.length) {
    services_.complete(RECV, LENGTH_ERROR, qpn, recv.wr_id);
    services_.release(recv.region);
    recvs_.pop();
    return refuse(REMOTE_INVALID_REQUEST, current_.seq, "the peer's message was longer than the posted receive");
  }
  if (current_.length == 0) return payload_placed();
  expect_payload(recv.at);
}

void QueuePair::handle_read() {
  if (current_.seq != executed_) return malformed("out of sequence");
  if (answers_.size() == MAX_OUTSTANDING_READS) return malformed("too many READs outstanding");
  Region* region = services_.regions.remote(current_.rkey, qpn);
  if (!region || !(region->access & ACCESS_REMOTE_READ) || !region->contains(current_.offset, current_.length)) {
    return refuse(REMOTE_ACCESS_ERROR, current_.seq, "the peer read outside what it was granted");
  }
  services_.hold(region);
  answers_.push() = {current_.seq, current_.length, 0, region->base + current_.offset, region};
  executed_++;
}

void QueuePair::handle_read_data() {
  // The answers come in the order of the READs: this one belongs to the oldest that is unanswered.
  const uint32_t index = current_.seq;
  if (index - sends_.head() >= written_ - sends_.head()) return malformed("an answer to nothing");
  SendEntry& entry = sends_.at(index);
  if (entry.opcode != READ || entry.answered || current_.offset != entry.placed ||
      current_.length > entry.length - entry.placed || (current_.length == 0 && entry.length > 0)) {
    return malformed("an answer that was not asked for");
  }
  if (current_.length == 0) return payload_placed();
  expect_payload(entry.pieces[0].at + entry.placed);
}

// The current frame's payload is where it belongs: executes the frame.
void QueuePair::payload_placed() {
  inbound_ = Inbound::header;
  placing_ = nullptr;
  switch (current_.type) {
    case FRAME_WRITE:
    case FRAME_PLACED:
      executed_++;
      return;
    case FRAME_WRITE_IMM:
    case FRAME_PLACED_IMM:
      if (!consume_recv_for_imm()) inbound_ = Inbound::needs_recv_for_imm;
      return;
    case FRAME_SEND: {
      RecvEntry& recv = recvs_.front();
      services_.complete(RECV, SUCCESS, qpn, recv.wr_id, current_.length);
      services_.release(recv.region);
      recvs_.pop();
      executed_++;
      return;
    }
    case FRAME_READ_DATA: {
      SendEntry& entry = sends_.at(current_.seq);
      entry.placed += current_.length;
      if (entry.placed == entry.length) {
        entry.answered = true;
        complete_acknowledged();
      }
      return;
    }
  }
}

bool QueuePair::consume_recv_for_imm() {
  if (recvs_.empty()) return false;
  RecvEntry& recv = recvs_.front();
  services_.complete(RECV_WRITE_WITH_IMM, SUCCESS, qpn, recv.wr_id, current_.length, current_.imm);
  services_.release(recv.region);
  recvs_.pop();
  executed_++;
  return true;
}

// A receive was posted: goes on where the stream waited for one.
void QueuePair::resume() {
  if (recvs_.empty()) return;
  if (inbound_ == Inbound::needs_recv_for_send) {
    inbound_ = Inbound::header;
    handle_send();
  } else if (inbound_ == Inbound::needs_recv_for_imm) {
    inbound_ = Inbound::header;
    consume_recv_for_imm();
  } else {
    return;
  }
  parse_headers();
  read_in(1 << 21);
}

void QueuePair::handle_map() {
  if (current_.seq != executed_) return malformed("out of sequence");
  Region* region = services_.regions.remote(current_.rkey, qpn);
  if (!region || !(region->access & ACCESS_REMOTE_WRITE)) {
    return refuse(REMOTE_ACCESS_ERROR, current_.seq, "the peer wanted to map what it was not granted");
  }
  if (maps_.size() == MAX_MAPS_QUEUED || mapped_by_peer_.size() == MAX_MAPPED_BY_PEER)
    return malformed("too many mappings");
  bool known = false;
  for (uint32_t rkey : mapped_by_peer_) known = known || rkey == current_.rkey;
  if (!known) mapped_by_peer_.push_back(current_.rkey);
  maps_.push_back(current_);
}

void QueuePair::handle_map_fd() {
  if (!waits_for_map_ || current_.rkey != map_rkey_) return malformed("a mapping that was not asked for");
  waits_for_map_ = false;
  if (current_.length == 0) return;  // revoked meanwhile: the request asks again and is refused
  if (received_fds_.empty()) return malformed("a mapping without its descriptor");
  const Descriptor fd = std::move(received_fds_.front());
  received_fds_.erase(received_fds_.begin());
  if (!peer_memory_.add(current_.rkey, fd.get(), current_.length)) malformed("a mapping that is no sealed region");
}

// In DRAINING and LINGERING: throws input away until the peer closes.
void QueuePair::discard_input() {
  static thread_local uint8_t scratch[65536];
  for (int calls = 0; calls < 64; calls++) {
    iovec piece{scratch, sizeof scratch};
    const long got = receive(&piece, 1);
    if (got > 0) continue;
    if (got < 0 && (errno == EINTR)) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (state_ == State::draining) return fail("", FLUSHED);
    return close_stream();
  }
}

}  // namespace tartan
