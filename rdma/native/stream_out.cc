// The outgoing half of a queue pair's stream: frames are appended to a small ring in the order of the wire, payloads
// stay where they are (gathered by sendmsg), and one sendmsg takes as many frames as the socket has room for.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include "queue_pair.h"

namespace tartan {

namespace {
// Copied to a peer's memory before the descriptors are sent: small enough that the peer starts early.
constexpr uint32_t COPY_BATCH_BYTES = 256 * 1024;
}  // namespace

QueuePair::OutFrame& QueuePair::append(uint8_t type, uint32_t seq) {
  OutFrame& frame = out_[out_tail_++ % OUT_FRAMES];
  frame = {};
  frame.header.type = type;
  frame.header.seq = seq;
  frame.header.ack = executed_;
  frame.header.recvs = recvs_announced_ = recvs_.tail();
  acked_to_peer_ = executed_;
  return frame;
}

// Other frames announce new receives in passing; one of its own is worth it when the peer could run out.
bool QueuePair::must_announce_recvs() const {
  const int32_t known_to_peer = static_cast<int32_t>(recvs_announced_ - recvs_.head());
  return recvs_announced_ != recvs_.tail() && known_to_peer <= static_cast<int32_t>(recvs_.size() / 2);
}

void QueuePair::fill() {
  const uint32_t first_new = out_tail_;
  uint32_t copied = 0;
  while (out_tail_ - out_head_ < OUT_FRAMES - 1 && copied < COPY_BATCH_BYTES) {  // one is kept for an ACK
    if (!unmaps_.empty()) {
      append(FRAME_UNMAP, 0).header.rkey = unmaps_.back();
      unmaps_.pop_back();
    } else if (!maps_.empty()) {
      Region* region = services_.regions.remote(maps_.front().rkey, qpn);
      // Revoked meanwhile: the request that wanted the mapping is refused when it asks again.
      Descriptor fd(region ? fcntl(region->memfd, F_DUPFD_CLOEXEC, 0) : -1);
      OutFrame& frame = append(FRAME_MAP_FD, 0);
      frame.header.rkey = maps_.front().rkey;
      frame.header.length = fd ? static_cast<uint32_t>(region->size) : 0;
      frame.fd = std::move(fd);
      maps_.erase(maps_.begin());
    } else if (!answers_.empty() &&
               (answers_turn_ || state_ != State::connected || next_ == sends_.tail() || waits_for_map_)) {
      append_answer();
      answers_turn_ = false;
    } else if (state_ == State::connected && append_request(copied)) {
      answers_turn_ = true;
    } else if (!answers_.empty()) {
      append_answer();
    } else if (nak_pending_) {
      nak_pending_ = false;
      append(FRAME_NAK, nak_seq_).header.status = nak_status_;
    } else {
      break;
    }
  }
  if ((acked_to_peer_ != executed_ || must_announce_recvs()) && state_ == State::connected) append(FRAME_ACK, 0);

  // Promise how many bare headers follow each new frame; an older one may be on its way already and keeps its promise.
  for (uint32_t i = out_tail_ - 1; out_tail_ != first_new && i - first_new < OUT_FRAMES; i--) {
    FrameHeader& header = out_[i % OUT_FRAMES].header;
    if (i + 1 == out_tail_) continue;
    const OutFrame& behind = out_[(i + 1) % OUT_FRAMES];
    const bool bare = behind.length[0] + behind.length[1] == 0;
    header.follow =
        !bare ? 0 : static_cast<uint8_t>(behind.header.follow < MAX_FOLLOW ? behind.header.follow + 1 : MAX_FOLLOW);
  }
}

// Frames the next request; false when there is none that may go now.
bool QueuePair::append_request(uint32_t& copied) {
  if (next_ == sends_.tail() || waits_for_map_ || is_doomed_) return false;
  SendEntry& entry = sends_.at(next_);
  if (entry.status != SUCCESS) return false;
  if (entry.opcode == READ) {
    if (reads_outstanding_ == MAX_OUTSTANDING_READS) return false;
    reads_outstanding_++;
    OutFrame& frame = append(FRAME_READ, next_++);
    frame.header.rkey = entry.rkey;
    frame.header.offset = entry.remote_offset;
    frame.header.length = entry.length;
    frame.is_request = true;
    return true;
  }

  const bool with_imm = entry.opcode == WRITE_WITH_IMM;
  const bool needs_recv = with_imm || entry.opcode == SEND;
  if (needs_recv && recvs_used_ == peer_recvs_) return false;
  uint8_t type = entry.opcode == SEND ? FRAME_SEND : with_imm ? FRAME_WRITE_IMM : FRAME_WRITE;
  if (transport == TransportKind::shm && entry.opcode != SEND) {
    type = with_imm ? FRAME_PLACED_IMM : FRAME_PLACED;
    if (entry.length > 0) {
      // Copying is placing: bytes behind a READ that may yet be refused must not move.
      if (reads_outstanding_ > 0) return false;
      const PeerRegion* target = peer_memory_.find(entry.rkey);
      if (!target) {
        OutFrame& frame = append(FRAME_MAP, next_);
        frame.header.rkey = entry.rkey;
        waits_for_map_ = true;
        map_rkey_ = entry.rkey;
        return true;
      }
      // Outside the region nothing is copied, here or by later requests; the owner judges the descriptor and refuses
      // it.
      if (static_cast<uint64_t>(entry.remote_offset) + entry.length > target->size) {
        is_doomed_ = true;
      } else {
        uint8_t* to = target->base + entry.remote_offset;
        for (const Piece& piece : entry.pieces) {
          if (piece.length == 0) continue;
          memcpy(to, piece.at, piece.length);  // non-temporal stores measured the same
          to += piece.length;
        }
        copied += entry.length;
      }
    }
  }
  if (needs_recv) recvs_used_++;
  OutFrame& frame = append(type, next_++);
  frame.header.rkey = entry.rkey;
  frame.header.offset = entry.remote_offset;
  frame.header.imm = entry.imm;
  frame.header.length = entry.length;
  frame.is_request = true;
  if (type == FRAME_SEND || type == FRAME_WRITE || type == FRAME_WRITE_IMM) {
    for (int i = 0; i < 2; i++) {
      frame.at[i] = entry.pieces[i].at;
      frame.length[i] = entry.pieces[i].length;
    }
  }
  services_.counters.bytes_sent.add(entry.length);
  return true;
}

void QueuePair::append_answer() {
  Answer& answer = answers_.front();
  OutFrame& frame = append(FRAME_READ_DATA, answer.seq);
  const uint32_t left = answer.length - answer.sent;
  const uint32_t part = left < READ_CHUNK_BYTES ? left : READ_CHUNK_BYTES;
  frame.header.offset = answer.sent;
  frame.header.length = part;
  frame.at[0] = answer.at + answer.sent;
  frame.length[0] = part;
  answer.sent += part;
  services_.counters.bytes_sent.add(part);
  if (answer.sent == answer.length) {
    frame.answered = answer.region;
    answers_.pop();
  }
}

void QueuePair::frame_written(OutFrame& frame) {
  if (frame.is_request) written_++;
  frame.fd.reset();
  services_.release(frame.answered);
}

bool QueuePair::write_out() {
  iovec pieces[OUT_FRAMES * 3];
  int count = 0;
  int fd_to_pass = -1;
  uint32_t skip = out_sent_;
  for (uint32_t i = out_head_; i != out_tail_; i++) {
    OutFrame& frame = out_[i % OUT_FRAMES];
    if (frame.fd) {
      if (i != out_head_) break;  // a descriptor travels with the first byte of its own message
      if (out_sent_ == 0) fd_to_pass = frame.fd.get();
    }
    const uint8_t* at[3] = {reinterpret_cast<const uint8_t*>(&frame.header), frame.at[0], frame.at[1]};
    const uint32_t length[3] = {sizeof(FrameHeader), frame.length[0], frame.length[1]};
    for (int p = 0; p < 3; p++) {
      if (length[p] <= skip) {
        skip -= length[p];
      } else {
        pieces[count++] = {const_cast<uint8_t*>(at[p] + skip), length[p] - skip};
        skip = 0;
      }
    }
    if (frame.fd) break;
  }

  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = static_cast<size_t>(count);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  if (fd_to_pass >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(rights), &fd_to_pass, sizeof(int));
  }
  ssize_t sent = sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0) {
    if (errno == EINTR) return true;
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ETOOMANYREFS || errno == ENOBUFS) {
      out_blocked_ = true;
      return false;
    }
    // What the peer said last (a NAK) may still be unread: the incoming half reports the loss.
    out_blocked_ = true;
    if (state_ == State::connected) read_in(UINT32_MAX);
    fail(std::string("the connection broke: ") + strerror(errno), RETRY_EXCEEDED);
    return false;
  }
  out_sent_ += static_cast<uint32_t>(sent);
  if (state_ == State::draining) services_.set_deadline(this, std::min(drain_by_ms_, monotonic_ms() + NAK_DEADLINE_MS));
  while (out_head_ != out_tail_) {
    OutFrame& frame = out_[out_head_ % OUT_FRAMES];
    const uint32_t total = sizeof(FrameHeader) + frame.length[0] + frame.length[1];
    if (out_sent_ < total) break;
    out_sent_ -= total;
    frame_written(frame);
    out_head_++;
  }
  return true;
}

}  // namespace tartan
