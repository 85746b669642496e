// Registered memory: a sealed memfd of its own, mapped once. Its descriptor is what a peer in the same network
// namespace maps to write into it.
//
// Threads: allocate() and the destructor run on the JavaScript thread; between the engine's ADD_REGION command and its
// REGION_GONE event everything but the constants belongs to the engine thread.
// Lifetime: the engine reports REGION_GONE once the keys are revoked and no work request references the region;
// JavaScript then detaches the ArrayBuffer and only then deletes the Region, which unmaps. A peer that still maps the
// memfd keeps pages that nobody else will ever see again.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "records.h"

namespace tartan {

class Region {
 public:
  // Returns nullptr and sets `why` when the kernel refuses.
  static Region* allocate(size_t bytes, uint32_t access, uint32_t lkey, uint32_t rkey, std::string& why);
  ~Region();
  Region(const Region&) = delete;

  bool contains(uint32_t offset, uint32_t length) const { return static_cast<uint64_t>(offset) + length <= size; }

  uint8_t* const base;
  const size_t size;
  const uint32_t access;
  const uint32_t lkey;
  const uint32_t rkey;
  const int memfd;

  // Engine thread only.
  uint32_t references = 0;  // work requests, receives and answers to READs under way
  bool revoked = false;
  bool is_restricted = false;            // to the queue pairs below; false: any that knows the key may reach it
  std::unordered_set<uint32_t> granted;  // by qpn
  bool is_granted_to(uint32_t qpn) const { return !is_restricted || granted.contains(qpn); }

 private:
  Region(uint8_t* base, size_t size, uint32_t access, uint32_t lkey, uint32_t rkey, int memfd)
      : base(base), size(size), access(access), lkey(lkey), rkey(rkey), memfd(memfd) {}
};

// Both keys of every region that is not revoked. Engine thread only.
class RegionTable {
 public:
  void add(Region* region);
  void revoke(Region* region);
  Region* local(uint32_t lkey) const { return find(by_lkey_, lkey); }
  // As a queue pair's peer may reach it: nullptr for a key that is wrong, or right and not granted to it.
  Region* remote(uint32_t rkey, uint32_t qpn) const {
    Region* region = find(by_rkey_, rkey);
    return region && region->is_granted_to(qpn) ? region : nullptr;
  }
  void ungrant(uint32_t rkey, uint32_t qpn) {  // the queue pair is gone
    if (Region* region = find(by_rkey_, rkey)) region->granted.erase(qpn);
  }

 private:
  using Table = std::unordered_map<uint32_t, Region*>;
  static Region* find(const Table& table, uint32_t key) {
    const auto found = table.find(key);
    return found == table.end() ? nullptr : found->second;
  }

  Table by_lkey_, by_rkey_;
};

}  // namespace tartan
