#include "packet_sockets.h"

#include <algorithm>

namespace tartan {

void PacketSockets::execute(Command& command) {
  if (command.type == CommandType::open_packet_socket) return open(command);
  const auto found = sockets_.find(command.id);
  if (found == sockets_.end()) {
    if (command.type != CommandType::add_packet_sender && command.type != CommandType::add_packet_receiver)
      services_.emit({EventType::fence, command.number});
    return;
  }
  PacketSocket* socket = found->second;
  switch (command.type) {
    case CommandType::add_packet_sender:
      socket->add_sender(command.number, command.words[0]);
      owners_[command.number] = socket;
      return;
    case CommandType::add_packet_receiver:
      return add_receiver(command);
    case CommandType::remove_packet_receiver:
      socket->remove_receiver(command.port);
      owners_.erase(command.port);
      return services_.emit({EventType::fence, command.number});
    default:  // close
      socket->close_all();
      std::erase_if(owners_, [&](const auto& entry) { return entry.second == socket; });
      std::erase(posted_, socket);
      sockets_.erase(found);
      services_.bury(socket);
      return services_.emit({EventType::fence, command.number});
  }
}

void PacketSockets::open(Command& command) {
  auto socket = std::make_unique<PacketSocket>(services_, command.id, command.packet_counters,
                                               Impairment{command.words[0], command.words[1], command.words[2]});
  uint32_t port = command.port;
  std::string why;
  if (!socket->open(command.host, port, why))
    return services_.emit({EventType::listen_failed, command.id, 0, 0, 0, why});
  sockets_[command.id] = socket.release();
  services_.emit({EventType::listening, command.id, 0, port});
}

void PacketSockets::add_receiver(Command& command) {
  const uint32_t* words = command.words;
  Region* region = services_.regions.local(words[0]);
  const ReceiverOptions options{words[1], words[2], uint64_t{words[4]} << 32 | words[3], words[5], words[6], words[7],
                                words[8], words[9]};
  if (!region || options.slots == 0 || uint64_t{options.slots} * options.slot_bytes > region->size) return;
  PacketSocket* socket = sockets_[command.id];
  socket->add_receiver(command.number, region, options);
  owners_[command.number] = socket;
}

void PacketSockets::post(const WorkRequest& request) {
  const auto found = owners_.find(request.qpn);
  PacketSocket* socket = found == owners_.end() ? nullptr : found->second;
  if (request.opcode == RELEASE_SLOT) {
    PacketReceiver* receiver = socket ? socket->receiver(request.qpn) : nullptr;
    if (receiver) receiver->release(request.wr_id, (request.flags & 1) != 0);
    return;
  }
  if (!socket || !socket->sender()) {
    if (request.opcode != CANCEL) services_.complete(request.opcode, FLUSHED, request.qpn, request.wr_id);
    return;
  }
  socket->sender()->post(request);
  if (std::find(posted_.begin(), posted_.end(), socket) == posted_.end()) posted_.push_back(socket);
}

void PacketSockets::pump() {
  for (PacketSocket* socket : posted_) socket->pump();
  posted_.clear();
}

void PacketSockets::close_all() {
  for (auto& [id, socket] : sockets_) {
    socket->close_all();
    services_.bury(socket);
  }
  sockets_.clear();
  owners_.clear();
  posted_.clear();
}

}  // namespace tartan
