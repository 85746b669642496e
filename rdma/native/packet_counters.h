// What a packet socket has done. One writing thread, the engine's; JavaScript reads at any time and outlives the
// socket's end.
#pragma once
#include "counters.h"

namespace tartan {

// In the order of PACKET_COUNTER_NAMES (src/soft/packet-socket.ts).
struct PacketCounters {
  Counter packets_sent, packets_retransmitted, packets_received, bytes_sent, bytes_received;
  Counter units_placed, duplicates, acks_sent, acks_received;
  Counter malformed, unknown, stale, no_slot, mismatch, reclaimed, send_blocked;
  Counter window, smoothed_rtt_us;  // last values, not counts

  void set(Counter& counter, uint64_t value) { counter.add(value - counter.get()); }
};

}  // namespace tartan
