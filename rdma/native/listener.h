// A listening address: a TCP socket and, beside it, an abstract Unix socket for shared memory. Engine thread only.
// It owns the handshakes it accepted until they become queue pairs. Streams that have not yet said who they are have a
// bounded number of places, those of each kind their own: whoever comes when all are taken gets that of the oldest,
// which has had the most time to speak. A crowd that says nothing shortens the time of its own kind and locks nobody
// out.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "address.h"
#include "services.h"

namespace tartan {

class Handshake;

class Listener : public Pollable {
 public:
  Listener(Services& services, uint32_t id) : id(id), services_(services), shm_(*this) {}
  ~Listener() override { close_all(); }

  // Binds and listens; false and `why` when it cannot. `port` becomes the one chosen for 0.
  bool open(const std::string& host, uint32_t& port, std::string& why);
  void close_all();
  void forget(Handshake* handshake);
  void on_ready(uint32_t epoll_events) override;

  const uint32_t id;

 private:
  // The Unix socket's own place in the epoll set.
  struct ShmSide : Pollable {
    explicit ShmSide(Listener& listener) : listener(listener) {}
    void on_ready(uint32_t) override { listener.accept_from(listener.shm_fd_.get(), TransportKind::shm); }
    Listener& listener;
  };

  bool open_tcp(const Address& wanted, std::string& why);
  bool open_shm(std::string& why);
  void accept_from(int fd, TransportKind transport);

  Services& services_;
  ShmSide shm_;
  Address address_;
  Descriptor tcp_fd_;
  Descriptor shm_fd_;
  std::vector<Handshake*>& handshakes(TransportKind transport) { return handshakes_[transport == TransportKind::shm]; }

  std::vector<Handshake*> handshakes_[2];  // over TCP, over shared memory; the oldest first
};

}  // namespace tartan
