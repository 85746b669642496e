// Regions of the peer, mapped here so that the requester itself copies a WRITE's bytes (shared memory transport).
// Engine thread only. A mapping lives until the peer revokes it or the queue pair's stream ends; the pages behind it
// stay valid even when the peer is gone, and the seals that add() insists on keep them from shrinking under us.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tartan {

struct PeerRegion {
  uint32_t rkey;
  uint8_t* base;
  size_t size;
};

class PeerMemory {
 public:
  ~PeerMemory() { clear(); }
  const PeerRegion* find(uint32_t rkey) const;
  // Maps `memfd`; the descriptor stays the caller's. `size`: the region's, at most the file's. False when it is not
  // what a region should be.
  bool add(uint32_t rkey, int memfd, uint32_t size);
  void drop(uint32_t rkey);
  void clear();

 private:
  std::vector<PeerRegion> regions_;
};

}  // namespace tartan
