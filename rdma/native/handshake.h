// A stream that is not yet a queue pair: connecting, or exchanging preambles, within a deadline. Engine thread only.
// It ends by handing its descriptor to a QueuePair or by closing it. Accepted streams report only success to JavaScript
// (a garbage connection is merely counted); connecting ones report either, once.
#pragma once
#include <cstdint>
#include <string>

#include "address.h"
#include "frame.h"
#include "services.h"

namespace tartan {

class Listener;

class Handshake : public Pollable {
 public:
  // The passive side, for a stream accepted by `listener`.
  Handshake(Services& services, Listener& listener, Descriptor fd, TransportKind transport, std::string remote);
  // The active side; begin() connects.
  Handshake(Services& services, uint32_t request, Address address, ConnectMode mode, int64_t timeout_ms);

  void begin();
  bool start();  // of the passive side; false when the kernel refuses to watch the stream
  void on_ready(uint32_t epoll_events) override;
  void on_deadline() override;
  void abandon();  // the listener closes
  void evict();    // another stream needs its place
  TransportKind transport() const { return transport_; }

 private:
  bool connect_shm();
  bool connect_tcp();
  void say_preamble();
  void read_preamble();
  void succeed();
  void give_up(const std::string& observation);

  Services& services_;
  Listener* listener_ = nullptr;
  const uint32_t request_ = 0;
  Address address_;
  const ConnectMode mode_ = ConnectMode::automatic;
  const int64_t timeout_ms_ = 0;
  Descriptor fd_;
  TransportKind transport_ = TransportKind::tcp;
  std::string remote_;
  bool connecting_ = false;
  uint32_t got_ = 0;
  Preamble preamble_{};
};

void tune_tcp(int fd);

}  // namespace tartan
