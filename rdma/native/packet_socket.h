// A UDP socket of the packet data plane: a node's, with a receiver for every writer session, or a writer's, with a
// sender.
//
// Engine thread only. Its timer is a timerfd, as the engine's own deadlines have a resolution of milliseconds.
#pragma once
#include <netinet/in.h>
#include <sys/socket.h>

#include <memory>
#include <unordered_map>
#include <vector>

#include "address.h"
#include "packet_receiver.h"
#include "packet_sender.h"

namespace tartan {

// Losses and reordering on arrival, drawn from a seed: for tests, where no network may be touched.
struct Impairment {
  uint32_t seed = 0;
  uint32_t loss_per_mille = 0;
  uint32_t reorder_per_mille = 0;  // held back until some others have passed, or for 3 ms
};

class PacketSocket : public Pollable {
 public:
  PacketSocket(Services& services, uint32_t id, std::shared_ptr<PacketCounters> counters, const Impairment& impairment);
  ~PacketSocket() override;

  // Binds; false and `why` when it cannot. `port` becomes the one chosen for 0.
  bool open(const std::string& host, uint32_t& port, std::string& why);
  void close_all();

  void add_sender(uint32_t qpn, uint32_t most_packets);
  void add_receiver(uint32_t qpn, Region* region, const ReceiverOptions& options);
  void remove_receiver(uint32_t qpn);
  PacketReceiver* receiver(uint32_t qpn);
  PacketSender* sender() { return sender_.get(); }

  void on_ready(uint32_t epoll_events) override;
  // Sends what can be sent.
  void pump();

  const uint32_t id;

 private:
  struct Timer : Pollable {
    explicit Timer(PacketSocket& socket) : socket(socket) {}
    void on_ready(uint32_t) override;
    PacketSocket& socket;
    Descriptor fd;
    int64_t due_us = 0;
  };
  static constexpr uint32_t BATCH = 32;
  static constexpr uint32_t BUFFER_BYTES = 9728;

  void take(const uint8_t* packet, uint32_t bytes, const sockaddr_in& from);
  void impair(const uint8_t* packet, uint32_t bytes, const sockaddr_in& from);
  void let_pass();
  bool draw(uint32_t per_mille);
  void answer(bool all);
  void set_timer(int64_t due_us);

  Services& services_;
  const std::shared_ptr<PacketCounters> counters_;
  Impairment impairment_;
  uint64_t random_;
  Timer timer_;
  Descriptor fd_;
  std::unique_ptr<PacketSender> sender_;
  // by the peer's address and port
  std::unordered_map<uint64_t, std::vector<std::unique_ptr<PacketReceiver>>> receivers_;
  // have something to acknowledge
  std::vector<PacketReceiver*> answering_;
  int64_t ack_due_us_ = 0, reclaim_due_us_ = 0, send_due_us_ = 0;
  std::vector<uint8_t> buffers_;
  std::vector<uint8_t> held_;  // a packet that is being overtaken
  sockaddr_in held_from_{};
  int64_t held_due_us_ = 0;
};

int64_t monotonic_us();

}  // namespace tartan
