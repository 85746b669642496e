// One engine with packet sockets, their senders and receivers, and peers that are nothing but UDP sockets.
//
// A case is a list of lines, as in stream_world.h. S names a packet socket of the engine (0, 1), U a peer (0 … 3), N a
// receiver in the order of adding, R a region.
//
//   open S seed loss reordering, sender S most, shut S
//   receiver S U R file epoch slots unitBytes, remove N, release N slot durable
//   memory R off bytes          the owner writes its own memory: headers of units
//   stripe S R headers units stride group chunk mask U
//   unit S R header headerBytes payload payloadBytes most U
//   cancel S back               the request so many before the last
//   say U S bytes               a datagram
//   expect status               with which the last request ended that has completed
//   dereg R, alloc R bytes access, sync, calm
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "../packet_format.h"
#include "owner.h"
#include "transcript.h"

namespace tartan::fuzz {

class PacketWorld {
 public:
  static constexpr uint32_t SOCKETS = 2, PEERS = 4;

  struct Heard {  // a packet of units that a peer got
    uint32_t socket;
    uint8_t type;
    uint32_t k, m, unit, offset, chunk;
    uint64_t file, stripe;
    uint32_t writer_epoch, counter, map_epoch;
  };
  struct Receiver {
    uint32_t qpn, socket, peer, slots, unit_bytes;
    uint64_t file;
    uint32_t writer_epoch;
    bool is_gone = false;
    std::vector<uint32_t> whole;  // slots with units that are not released
  };

  explicit PacketWorld(Transcript& transcript);
  ~PacketWorld();

  void run(const std::string& line);
  // A unit of an honest peer is placed; then everything ends, and nothing is left.
  void finish();

  Owner& owner() { return *owner_; }
  uint64_t frames_seen() const { return frames_seen_; }
  uint32_t port_of(uint32_t socket) const { return sockets_[socket % SOCKETS].port; }
  bool has_sender(uint32_t socket) const { return sockets_[socket % SOCKETS].sender != 0; }
  const std::vector<Receiver>& receivers() const { return receivers_; }
  std::vector<Heard> heard;  // the last few

 private:
  struct Socket {
    uint32_t id = 0, port = 0, sender = 0;
  };

  void open(uint32_t socket, uint32_t seed, uint32_t loss, uint32_t reordering);
  void shut(Socket& socket);
  void add_receiver(Receiver receiver, uint32_t region);
  void hear();
  void place_honest_unit();

  Transcript& transcript_;
  const size_t descriptors_before_;
  std::unique_ptr<Owner> owner_;
  Socket sockets_[SOCKETS];
  int peers_[PEERS];
  uint32_t peer_ports_[PEERS];
  std::vector<Receiver> receivers_;
  uint32_t next_id_ = 1'000'000;
  uint64_t frames_seen_ = 0;
};

// A sound packet of one chunk: packet header, unit header, payload. `header` is not checked.
std::vector<uint8_t> unit_packet(packet::Type type, const std::vector<uint8_t>& header, uint32_t offset, uint32_t chunk,
                                 const std::vector<uint8_t>& payload);

}  // namespace tartan::fuzz
