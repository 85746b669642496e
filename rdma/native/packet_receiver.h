// A node's side of one writer session: units whose chunks come as packets, in any order and more than once, are placed
// into slots of registered memory; a whole unit becomes a completion as if it had been written with immediate.
//
//   FREE ── first chunk ──▶ FILLING ── all chunks, parity finished ──▶ WHOLE ── release() by JavaScript ──▶ FREE
//             ▲                │ nothing came for two deadlines, or it was found wrong
//             └────────────────┘
//
// Engine thread only. The region is held while the receiver lives.
#pragma once
#include <cstdint>
#include <vector>

#include "packet_counters.h"
#include "packet_format.h"
#include "region.h"
#include "services.h"

namespace tartan {

struct ReceiverOptions {
  uint32_t peer_address = 0;  // IPv4, host byte order
  uint32_t peer_port = 0;
  uint64_t file = 0;
  uint32_t writer_epoch = 0;
  uint32_t slots = 0, slot_bytes = 0, unit_bytes = 0;
  uint32_t reclaim_ms = 2000;
};

class PacketReceiver {
 public:
  PacketReceiver(Services& services, PacketCounters& counters, uint32_t qpn, Region* region,
                 const ReceiverOptions& options);
  ~PacketReceiver();
  PacketReceiver(const PacketReceiver&) = delete;

  // A unit or parity packet whose header and checksum are sound. `now_ms` is monotonic.
  void take(const uint8_t* packet, uint32_t bytes, int64_t now_ms);
  // JavaScript is done with a whole unit. durable: packets of it are from now on acknowledged without a slot.
  void release(uint32_t slot, bool durable);
  // Slots whose unit has not grown for so long are free again.
  void reclaim(int64_t now_ms);

  bool wants_ack() const { return !touched_.empty(); }
  bool wants_ack_now() const { return ack_now_; }
  // Writes one acknowledgement packet of at most `room` bytes; returns its length, 0 when there is nothing to say.
  uint32_t make_ack(uint8_t* packet, uint32_t room);

  const uint32_t qpn;
  const ReceiverOptions options;

 private:
  enum class State : uint8_t { free, filling, whole };
  struct Slot {
    State state = State::free;
    uint8_t unit = 0;
    uint8_t type = 0;
    uint64_t stripe = 0;
    uint32_t counter = 0, map_epoch = 0;
    uint8_t incarnation = 0;  // how often chunks of this name have been forgotten, modulo 128
    uint32_t chunk = 0, wanted = 0, have = 0, first_missing = 0;
    uint32_t header_bytes = 0, payload_bytes = 0;
    int64_t touched_ms = 0;
    std::vector<uint64_t> bits;
  };
  struct Name {
    uint64_t stripe;
    uint32_t counter, map_epoch;
  };
  struct Said {  // about a unit without a slot
    Name name;
    uint32_t chunk;
    uint8_t unit;
  };
  struct Touched {
    int32_t slot;  // -1: `said`
    Said said;
  };

  struct Forgotten {  // acknowledged chunks of it were lost with a slot that was reclaimed
    Name name;
    uint8_t unit;
    uint8_t incarnation;
  };

  static constexpr uint32_t REMEMBERED = 1024;
  static constexpr uint32_t FORGOTTEN = 256;
  static constexpr uint32_t ACK_EVERY = 4;

  Slot* find(uint64_t stripe, uint32_t counter);
  bool is_remembered(uint64_t stripe, uint32_t counter, uint32_t map_epoch) const;
  void begin(Slot& slot, const packet::UnitView& header, uint8_t type, uint32_t chunk);
  void finish(Slot& slot);
  bool finish_parity(uint8_t* header, const Slot& slot);
  void drop(Slot& slot);
  void forget(const Slot& slot);
  uint8_t incarnation_of(const packet::UnitView& header) const;
  void touch(Slot& slot);
  void say_whole(const packet::UnitView& header, uint32_t chunk);
  uint8_t* payload_of(const Slot& slot) const {
    return region_->base + index_of(slot) * options.slot_bytes + packet::SLOT_PAYLOAD;
  }
  uint8_t* header_of(const Slot& slot) const { return payload_of(slot) - slot.header_bytes; }
  size_t index_of(const Slot& slot) const { return static_cast<size_t>(&slot - slots_.data()); }

  Services& services_;
  PacketCounters& counters_;
  Region* const region_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  size_t last_found_ = 0;
  std::vector<Name> remembered_;
  uint32_t remembered_at_ = 0;
  std::vector<Forgotten> forgotten_;
  uint32_t forgotten_at_ = 0;
  std::vector<Touched> touched_;  // units to be told of in the next acknowledgement
  uint32_t since_ack_ = 0;
  bool ack_now_ = false;
};

}  // namespace tartan
