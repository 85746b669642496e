// A writer's side: cuts stripes (for a packet switch) and units (for a node) into packets, sends them at the pace that
// the path takes, and sends again what is not acknowledged. A request completes when every chunk of every unit that it
// must reach has been acknowledged as placed; until then its memory is read.
//
// One congestion window covers everything that is sent: what it protects is the writer's own link and the switch behind
// it. Engine thread only. Nothing is allocated per request once as many have been under way as ever will be.
#pragma once
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "congestion_window.h"
#include "growable_ring.h"
#include "packet_counters.h"
#include "packet_format.h"
#include "services.h"

namespace tartan {

class PacketSender {
 public:
  PacketSender(Services& services, PacketCounters& counters, uint32_t qpn, uint32_t most_packets);
  ~PacketSender();
  PacketSender(const PacketSender&) = delete;

  void post(const WorkRequest& request);
  void cancel(uint32_t wr_id);
  // An acknowledgement packet whose header is sound.
  void take_ack(const uint8_t* packet, uint32_t bytes, const sockaddr_in& from, int64_t now_us);
  // Sends what may be sent now. Returns when to be called again (monotonic µs), 0: not before something happens.
  int64_t pump(int fd, int64_t now_us);
  // Completes everything with FLUSHED.
  void flush();

  const uint32_t qpn;

 private:
  static constexpr uint32_t BATCH = 32;
  static constexpr uint32_t MAX_UNITS = packet::MAX_K + packet::MAX_M;
  static constexpr uint32_t MAX_PIECES = 3 + 2 * packet::MAX_K;
  static constexpr uint32_t MAX_PREFIX = packet::DATA_HEADER_BYTES + packet::MAX_K * packet::DESCRIPTOR_BYTES;

  enum class Chunk : uint8_t { unsent, in_flight, lost, placed };
  struct Unit {
    uint32_t wanted = 0;      // chunks; 0: not to be waited for
    uint32_t below = 0;       // all chunks below have been acknowledged
    uint8_t incarnation = 0;  // of the slot at the node that its acknowledgements are of
    int64_t newest_us = 0;    // when the newest chunk that it has acknowledged had been sent
    std::vector<uint64_t> bits;
  };
  struct Operation {
    uint32_t index = 0;       // in operations_
    uint32_t generation = 0;  // of what is under way; what has ended has another
    uint8_t opcode = 0;
    uint32_t wr_id = 0;
    Region* region = nullptr;
    uint64_t file = 0, stripe = 0;
    uint32_t writer_epoch = 0, counter = 0, map_epoch = 0;
    uint32_t k = 0, m = 0;
    uint32_t group = 0, chunk = 0, chunks = 0, next = 0, placed = 0;
    const uint8_t* data[packet::MAX_K];
    uint32_t length[packet::MAX_K];
    sockaddr_in to{};
    uint8_t prefix[MAX_PREFIX];
    uint32_t prefix_bytes = 0;
    uint64_t prefix_sum = 0;
    Unit units[MAX_UNITS];
    std::vector<uint8_t> waiting;   // units of each chunk that have not acknowledged it
    std::vector<uint8_t> expected;  // and how many there are
    std::vector<Chunk> state;
    std::vector<uint8_t> sendings;  // of each chunk, 255 at most
    std::vector<int64_t> sent_us;
  };
  struct Sent {
    uint32_t operation, generation, chunk;
    int64_t at_us;
  };

  // What an acknowledgement says of one unit.
  struct Entry {
    uint64_t file, stripe;
    uint32_t writer_epoch, counter, map_epoch, unit, chunk;
    bool is_whole;
    const sockaddr_in* from;
  };

  bool prepare_stripe(Operation& operation, const WorkRequest& request);
  bool prepare_unit(Operation& operation, const WorkRequest& request);
  void start(Operation& operation);
  void expect(Operation& operation, uint32_t unit, uint32_t length);
  void complete(Operation& operation, uint8_t status);
  Operation* find(const Entry& entry);
  void acknowledge(Operation& operation, Unit& unit, uint32_t chunk, int64_t now_us);
  void begin_anew(Operation& operation, Unit& unit);
  void find_lost(int64_t now_us);
  bool is_overtaken(const Sent& sent) const;
  void lose(const Sent& sent);
  // Nothing was acknowledged for so long: the oldest packet goes out once more, so that an answer tells of the others.
  int64_t probe_due_us() const { return progress_us_ + window_.probe_us(); }
  bool take_next(uint32_t& operation, uint32_t& chunk);
  uint32_t build(Operation& operation, uint32_t chunk, uint32_t at);
  const Operation* live(const Sent& sent) const;

  Services& services_;
  PacketCounters& counters_;
  CongestionWindow window_;
  std::vector<std::unique_ptr<Operation>> operations_;
  std::vector<uint32_t> free_;
  std::vector<uint32_t> active_;  // in the order of posting
  size_t last_found_ = 0;
  size_t next_unsent_ = 0;   // position in active_ from which on chunks may be unsent
  GrowableRing<Sent> sent_;  // in the order of sending; entries of chunks sent again or placed are stale
  GrowableRing<Sent> lost_;
  uint32_t in_flight_ = 0;
  int64_t newest_placed_us_ = 0;  // when the newest packet that was acknowledged had been sent
  int64_t newest_us_ = 0;         // the same of any unit
  int64_t progress_us_ = 0;       // when something was last acknowledged, or sent with nothing under way
  bool is_probed_ = false;        // since then
  int64_t pace_due_us_ = 0;
  uint8_t headers_[BATCH][packet::HEADER_BYTES];
  iovec pieces_[BATCH][MAX_PIECES];
  mmsghdr messages_[BATCH];
};

}  // namespace tartan
