// One reliable connection: its queue pair in the adapter, and before it two queues of any length in memory.
//
//   CONNECTING ──▶ CONNECTED ──fail()──▶ ERROR ──destroy()──▶ gone
//        └── connect fails, or the device closes ──▶ gone
//
// A request holds its regions from posting until it is retired. Send-side requests are retired in order by a completion
// of the adapter, which stands for everything before it; the last request of every batch, and every 16th, is signalled
// to the adapter whatever JavaScript asked, so that no request stays unretired for want of a successor.
//
// fail() ends in the adapter at once: the queue pair is moved to its error state, what had completed is taken, and the
// queue pair is destroyed. From then on no byte moves, and what is left is flushed here. Nothing waits for an adapter
// that is gone.
//
// Threads: all on the JavaScript thread of the device.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "../growable_ring.h"
#include "../records.h"
#include "cm_object.h"
#include "region.h"

namespace tartan::verbs {

class Adapter;
class SharedReceiveQueue;
struct CompletionSource;

class QueuePair : public CmObject {
 public:
  enum class State { connecting, connected, error };

  // Active side: begins at once, ends in a connected or connect_failed event. `request` names it.
  QueuePair(Adapter& adapter, uint32_t qpn, uint32_t request, std::string remote);
  // Passive side, from a connection request.
  QueuePair(Adapter& adapter, uint32_t qpn, uint32_t listener, rdma_cm_id* id, std::string remote);
  ~QueuePair() override;

  // Before connect() or accept(): it has no receives of its own then. nullptr: it has.
  void share(SharedReceiveQueue* receives);
  void connect(const sockaddr* source, const sockaddr* destination, int timeout_ms);
  void accept(const CmEvent& request);
  void on_cm_event(const CmEvent& event) override;

  void post_send(const WorkRequest& request);
  void post_recv(const WorkRequest& request);
  void pump();
  void on_completion(const ibv_wc& wc);
  void on_shared_receive(const ibv_wc& wc);
  // `status` goes to the oldest send-side request, `recv_status` to the oldest receive; the rest flushes.
  void fail(const std::string& reason, uint8_t status, uint8_t recv_status = FLUSHED);

  const uint32_t qpn;
  const uint32_t request;  // of connect(), or the listener's id
  bool is_dirty = false;
  bool is_failing = false;  // in the adapter's list of those to fail
  std::string failure;      // why
  State state() const { return state_; }
  uint32_t hardware_qpn() const { return id_ && id_->qp ? id_->qp->qp_num : 0; }
  const CompletionSource* source() const { return source_; }

 private:
  struct Piece {
    Region* region;
    uint32_t offset, length;
  };
  struct SendEntry {
    uint8_t opcode, flags, pieces;
    uint8_t status;  // not SUCCESS: fails with it when everything before it is retired
    uint32_t wr_id, imm, rkey, remote_offset, length;
    Piece piece[2];
  };
  struct RecvEntry {
    uint32_t wr_id;
    bool has_buffer;
    Piece piece;
  };

  bool create();  // the adapter's queue pair; false: `failure` says why
  void tune();
  void give_up(const std::string& observation);
  bool resolve(const GatherEntry& gather, Piece& piece);
  void retire_before(uint32_t seq);
  void retire(SendEntry& entry, uint8_t status);
  void pump_sends();
  void pump_recvs();
  void will_fail(const std::string& reason);
  void destroy_connection();
  void flush();
  void deliver_early(uint32_t to);
  uint32_t completions_reserved() const;

  Adapter& adapter_;
  const bool is_active_;
  const std::string remote_;
  State state_ = State::connecting;
  rdma_cm_id* id_ = nullptr;
  CompletionSource* source_ = nullptr;
  SharedReceiveQueue* shared_ = nullptr;
  std::vector<ibv_wc> early_;  // shared receives that completed before JavaScript heard of this queue pair
  uint32_t max_inline_ = 0;
  int timeout_ms_ = 0;
  uint8_t first_status_ = FLUSHED, first_recv_status_ = FLUSHED;

  GrowableRing<SendEntry> sends_;
  uint32_t next_send_ = 0;  // the first not yet with the adapter
  uint32_t unsignalled_ = 0;
  bool has_failed_send_ = false;  // the oldest request is the one that failed
  GrowableRing<RecvEntry> recvs_;
  uint32_t next_recv_ = 0;
};

}  // namespace tartan::verbs
