// Whoever stands behind an rdma_cm_id: a listener or a queue pair. The id's context points to it.
#pragma once
#include <rdma/rdma_cma.h>

#include <cstdint>
#include <cstring>
#include <string>

namespace tartan::verbs {

// What both sides say in the connection manager's private data: that they speak this protocol, in this version.
struct Greeting {
  char magic[8];
  uint32_t version;
  uint32_t zero;

  static Greeting make() { return {{'t', 'a', 'r', 't', 'a', 'n', '-', 'v'}, 1, 0}; }
  // Fabrics pad private data: only the beginning counts.
  bool is_ours() const {
    const Greeting mine = make();
    return memcmp(this, &mine, sizeof mine) == 0;
  }
};

// An event of the connection manager, copied, so that it is acknowledged before anybody acts on it (destroying an id
// waits for the acknowledgement of its events).
struct CmEvent {
  rdma_cm_event_type type;
  int status;
  rdma_cm_id* id;
  uint8_t responder_resources, initiator_depth;
  bool has_greeting;
  Greeting greeting;
};

class CmObject {
 public:
  virtual ~CmObject() = default;
  virtual void on_cm_event(const CmEvent& event) = 0;
};

}  // namespace tartan::verbs
