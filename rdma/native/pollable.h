// Something with a descriptor in the engine's epoll set and perhaps a deadline. Engine thread only.
// Lifetime: epoll hands back raw pointers, so a Pollable that is done calls Services::bury(); the engine deletes it
// after the current batch of events.
#pragma once
#include <cstdint>

namespace tartan {

class Pollable {
 public:
  virtual ~Pollable() = default;
  virtual void on_ready(uint32_t epoll_events) = 0;
  virtual void on_deadline() {}

  int64_t deadline_ms = 0;  // monotonic; 0: none
  bool timed = false;       // in the engine's list of timers
  bool buried = false;
};

}  // namespace tartan
