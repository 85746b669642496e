// Registered memory. The memory itself belongs to the soft device beside the adapter (which codes in it); here is its
// registration. It is registered with I/O virtual addresses from 0, so that an offset is an address for both sides and
// no base has to be told to a peer.
//
// Lifetime: revoked first, deregistered when no request refers to it; only then does JavaScript let the memory go.
#pragma once
#include <infiniband/verbs.h>

#include <cstdint>

namespace tartan::verbs {

struct Region {
  uint8_t* base;
  uint64_t size;
  uint32_t lkey;  // the device's own, not the adapter's
  ibv_mr* mr;
  uint32_t references = 0;  // requests and receives posted and not completed
  bool revoked = false;

  bool contains(uint32_t offset, uint32_t length) const { return static_cast<uint64_t>(offset) + length <= size; }
};

}  // namespace tartan::verbs
