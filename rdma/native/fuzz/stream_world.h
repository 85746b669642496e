// One engine with a listener and memory, and peers that are nothing but sockets: what they say is up to the case.
//
// A case is a list of lines; run() does one. Numbers are decimal, bytes hexadecimal. P names a peer (0 … 7), C a queue
// pair of the engine's in the order in which they came up, R a region (0 … 5).
//
//   dial P tcp|shm           the peer connects to the engine's listener
//   answer P tcp|shm         the engine connects to the peer
//   send P bytes             as far as the engine takes them
//   pass P kind size n bytes the same with n descriptors: kind sealed, unsealed, pipe or short
//   deaf P 0|1               the peer reads what comes, or does not
//   shut P, close P, reset P half, or wholly, or with RST
//   post C op flags rkey roff imm [lkey off len]…    op: the opcode's number
//   recv C lkey off len
//   error C, destroy C       by the owner
//   dereg R, alloc R bytes access, grant R C, scribble R off len byte
//   listen, unlisten, sync, calm
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "owner.h"
#include "transcript.h"

namespace tartan::fuzz {

// What a peer has understood of what the engine said to it.
struct PeerView {
  bool is_open = false;
  bool has_ended = false;  // the engine closed
  TransportKind transport = TransportKind::tcp;
  uint32_t preamble = 0;  // bytes of it seen
  uint32_t requests = 0;  // request frames seen: what may be acknowledged
  uint32_t acked = 0;     // the engine's last `ack`: requests of ours executed
  uint32_t recvs = 0;     // receives it has posted, by its last word
  bool is_refused = false;
  std::vector<FrameHeader> reads;  // READs it waits for
  std::vector<uint32_t> maps;      // regions it wants to map
  uint32_t descriptors = 0;        // that it passed
};

class StreamWorld {
 public:
  static constexpr uint32_t PEERS = 8;

  explicit StreamWorld(Transcript& transcript);
  ~StreamWorld();

  void run(const std::string& line);
  // An honest peer is served; then everything ends, and nothing is left.
  void finish();

  const PeerView& view(uint32_t peer) const { return peers_[peer % PEERS].view; }
  Owner& owner() { return *owner_; }
  uint64_t frames_seen() const { return frames_seen_; }

 private:
  struct Peer {
    PeerView view;
    int fd = -1;
    bool is_deaf = false;
    std::vector<uint8_t> heard;  // the beginning of a frame
    uint64_t skip = 0;           // payload bytes still to come
  };

  void dial(Peer& peer, TransportKind transport);
  void answer(Peer& peer, TransportKind transport);
  bool send(Peer& peer, const std::vector<uint8_t>& bytes, const std::vector<int>& descriptors);
  void hear(Peer& peer);
  void understand(Peer& peer);
  void frame(Peer& peer, const FrameHeader& header);
  void end(Peer& peer, bool with_reset);
  void serve_honest_peer(TransportKind transport);

  Transcript& transcript_;
  const size_t descriptors_before_;
  std::unique_ptr<Owner> owner_;
  uint32_t port_ = 0;
  Peer peers_[PEERS];
  uint64_t frames_seen_ = 0;
};

}  // namespace tartan::fuzz
