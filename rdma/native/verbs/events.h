// What an adapter tells JavaScript besides completions; the numbers are those of EventType in rdma/src/verbs/native.ts.
// Each is announced by a completion with OPCODE_EVENT, so that it keeps its place among them.
#pragma once
#include <cstdint>
#include <string>

namespace tartan::verbs {

enum class EventType : uint8_t {
  listening = 1,         // id, number: port
  listen_failed = 2,     // id, text
  connected = 3,         // id, qpn, text: the remote address
  connect_failed = 4,    // id, text
  accepted = 5,          // id: the listener, qpn, text: the remote address
  queue_pair_error = 6,  // qpn, text: the reason
  queue_pair_gone = 7,   // qpn
  region_gone = 8,       // id: the lkey
  fence = 9,             // id
  asynchronous = 10,     // id: ibv_event_type, number: the port or 0, text: its description
  receives_low = 11,     // qpn: the shared receive queue
};

struct Event {
  EventType type;
  uint32_t id = 0;
  uint32_t qpn = 0;
  uint32_t number = 0;
  std::string text;
};

}  // namespace tartan::verbs
