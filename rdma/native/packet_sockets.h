// The engine's packet sockets, and which of them a work request is for. Engine thread only.
#pragma once
#include <unordered_map>
#include <vector>

#include "mailbox.h"
#include "packet_socket.h"

namespace tartan {

class PacketSockets {
 public:
  explicit PacketSockets(Services& services) : services_(services) {}
  ~PacketSockets() { close_all(); }

  void execute(Command& command);
  // SEND_STRIPE, SEND_UNIT, CANCEL and RELEASE_SLOT; for a qpn that is gone they complete with FLUSHED, or not at all.
  void post(const WorkRequest& request);
  bool has_work() const { return !posted_.empty(); }
  // Sends what was posted since the last call.
  void pump();
  void close_all();

 private:
  void open(Command& command);
  void add_receiver(Command& command);

  Services& services_;
  std::unordered_map<uint32_t, PacketSocket*> sockets_;  // by id
  std::unordered_map<uint32_t, PacketSocket*> owners_;   // by qpn
  std::vector<PacketSocket*> posted_;
};

}  // namespace tartan
