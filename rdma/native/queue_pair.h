// One queue pair: its send and receive queues, and the stream to its peer (TCP, or a Unix socket beside shared memory).
// queue_pair.cc keeps the queues, states and completions; stream_out.cc and stream_in.cc move frames.
//
//                  fail(): the stream is closed, everything flushes
//     CONNECTED ───────────────────────────────────────────────────────────────▶ CLOSED ── destroy() ──▶ gone
//         │                                                                      ▲    ▲
//         │ refuse(): a NAK is to be said          deadline, peer closed: flush  │    │ deadline, peer closed
//         ▼                                                                      │    │
//     DRAINING ──────────────────────────────────────────────────────────────────┘    │
//         └────────── NAK written, its direction shut: everything flushes ──▶ LINGERING
//
//                   posted work        bytes that arrive   the outgoing stream                        memory
//     CONNECTED     is queued          are frames          all frames                                 is read and
//     written DRAINING      is queued, flushes are thrown away     a frame begun, answers to READs, the NAK   is read
//     LINGERING     flushes at once    are thrown away     is shut                                    is not touched
//     CLOSED        flushes at once    -                   -                                          is not touched
//
// LINGERING and CLOSED are what JavaScript calls the error state once everything has flushed. They have neither send
// nor receive logic: the queues are empty, nothing is left that could be acknowledged, and nothing is ever added to
// them. LINGERING exists because closing with input unread would reset the connection under the NAK.
//
// Engine thread only. In DRAINING source memory may still be touched, hence no completion is flushed before it ends.
// Regions named by an outstanding request are held (Services::hold) until its completion is pushed.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "frame.h"
#include "descriptor.h"
#include "growable_ring.h"
#include "peer_memory.h"
#include "records.h"
#include "services.h"

namespace tartan {

class QueuePair : public Pollable {
 public:
  QueuePair(Services& services, uint32_t qpn, Descriptor fd, TransportKind transport, std::string remote);

  bool start();  // false when the kernel refuses to watch the stream

  void post_send(const WorkRequest& request);  // WRITE, WRITE_WITH_IMM, READ, SEND
  void post_recv(const WorkRequest& request);
  // `status` goes to the oldest outstanding send-side request; everything else flushes.
  // By JavaScript: what is queued is not sent any more, so that it does not delay what takes another way.
  void abandon(const std::string& reason);
  void fail(const std::string& reason, uint8_t status);
  void destroy();
  void on_revoke(Region* region);

  // Moves what can be moved now, within a budget; asks to be called again when the budget ended it.
  void pump();
  void on_ready(uint32_t epoll_events) override;
  void on_deadline() override;

  const uint32_t qpn;
  std::vector<uint32_t> granted_rkeys;  // of regions, of which some may be gone
  const TransportKind transport;
  const std::string remote;
  bool is_dirty = false;

 private:
  enum class State { connected, draining, lingering, closed };
  // What the next inbound bytes are, or what the stream waits for.
  enum class Inbound { header, payload, needs_recv_for_send, needs_recv_for_imm };

  struct Piece {
    uint8_t* at;
    uint32_t length;
    Region* region;
  };
  struct SendEntry {
    uint8_t opcode;
    uint8_t flags;
    uint8_t status;  // not SUCCESS: fails with it when everything before it has completed
    bool answered;   // READ: every byte is in place
    uint32_t wr_id, imm, rkey, remote_offset, length;
    uint32_t placed;  // READ: bytes in place
    Piece pieces[2];
  };
  struct RecvEntry {
    uint32_t wr_id;
    uint32_t length;
    uint8_t* at;
    Region* region;
  };
  struct Answer {  // to a READ of the peer
    uint32_t seq;
    uint32_t length, sent;
    uint8_t* at;
    Region* region;
  };
  struct OutFrame {
    FrameHeader header;
    const uint8_t* at[2];
    uint32_t length[2];
    Descriptor fd;  // a copy of a memfd that travels with the frame
    bool is_request;
    Region* answered;  // the last part of an answer to a READ: its region, to release
  };

  static constexpr uint32_t OUT_FRAMES = 64;
  static constexpr int64_t NAK_DEADLINE_MS = 1000;  // without progress: the peer then sees a lost connection instead
  static constexpr int64_t DRAIN_MS = 5000;  // with however much progress: a slow reader holds no memory for ever

  // queue_pair.cc
  bool resolve(const GatherEntry& gather, Piece& piece);
  void complete_send(SendEntry& entry, uint8_t status);
  void complete_acknowledged();
  void refuse(uint8_t status, uint32_t seq, const std::string& reason);
  void drop_unbegun_requests();
  bool is_flushed() const { return state_ == State::lingering || state_ == State::closed; }
  void leave_connected(const std::string& reason, uint8_t status);
  void flush_into(State state);
  void close_stream();
  void send_frames();
  void report_gone_if_wanted();
  void mark_dirty();

  // stream_out.cc
  bool must_announce_recvs() const;
  void fill();
  OutFrame& append(uint8_t type, uint32_t seq);
  bool append_request(uint32_t& copied);
  void append_answer();
  bool write_out();  // false: the socket is full, or gone
  void frame_written(OutFrame& frame);
  void update_interest();

  // stream_in.cc
  void read_in(uint32_t budget);
  void parse_headers();
  void handle_frame();
  void handle_write(bool placed_already);
  void handle_send();
  void handle_read();
  void handle_read_data();
  void handle_map();
  void handle_map_fd();
  void expect_payload(uint8_t* at);
  void payload_placed();
  bool consume_recv_for_imm();
  bool accept_ack(uint32_t ack);
  void resume();
  void discard_input();
  void malformed(const char* what);
  long receive(struct iovec* pieces, int count);

  Services& services_;
  Descriptor fd_;
  State state_ = State::connected;
  int64_t drain_by_ms_ = 0;
  uint8_t first_status_ = FLUSHED;
  bool wants_destroy_ = false;
  bool is_abandoned_ = false;  // what the kernel still holds need not arrive
  bool is_reported_gone_ = false;
  uint32_t interest_ = 0;  // epoll events asked for

  // Requester. Entries from head: acknowledged ones complete; sequence numbers are the ring's indexes.
  GrowableRing<SendEntry> sends_;
  uint32_t next_ = 0;     // the first entry not yet framed
  uint32_t written_ = 0;  // the first entry whose frame is not wholly with the kernel
  uint32_t acked_ = 0;    // the first entry the peer has not executed
  uint32_t reads_outstanding_ = 0;
  uint32_t peer_recvs_ = 0;  // receives the peer has ever posted, by its last word
  uint32_t recvs_used_ = 0;  // of those, spoken for by requests already framed
  PeerMemory peer_memory_;
  bool waits_for_map_ = false;
  uint32_t map_rkey_ = 0;
  bool is_doomed_ = false;  // shm: a request on its way will be refused, what follows must not be copied

  // Responder.
  GrowableRing<RecvEntry> recvs_;
  GrowableRing<Answer> answers_;
  uint32_t executed_ = 0;  // requests of the peer executed, i.e. the sequence number expected next
  uint32_t acked_to_peer_ = 0;
  uint32_t recvs_announced_ = 0;
  std::vector<uint32_t> mapped_by_peer_;
  std::vector<uint32_t> unmaps_;   // to announce
  std::vector<FrameHeader> maps_;  // answers to MAP, to be sent
  bool nak_pending_ = false;
  uint8_t nak_status_ = 0;
  uint32_t nak_seq_ = 0;

  // Outgoing stream.
  OutFrame out_[OUT_FRAMES];
  uint32_t out_head_ = 0, out_tail_ = 0;
  uint32_t out_sent_ = 0;  // bytes of the head frame that are with the kernel
  bool out_blocked_ = false;
  bool answers_turn_ = false;

  // Incoming stream.
  Inbound inbound_ = Inbound::header;
  FrameHeader current_{};
  uint8_t* payload_at_ = nullptr;
  uint32_t payload_left_ = 0;
  Region* placing_ = nullptr;  // the region of a remote WRITE being received; not held: revoking it refuses the WRITE
  uint32_t headers_allowed_ = 1;
  uint32_t staged_from_ = 0, staged_to_ = 0;  // bytes in staging_
  std::vector<Descriptor> received_fds_;
  alignas(8) uint8_t staging_[(MAX_FOLLOW + 1) * sizeof(FrameHeader)];
};

}  // namespace tartan
