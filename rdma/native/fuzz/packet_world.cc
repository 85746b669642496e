#include "packet_world.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

namespace tartan::fuzz {

namespace {
constexpr uint32_t LOOPBACK = 0x7f00'0001;

sockaddr_in at_port(uint32_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}
}  // namespace

std::vector<uint8_t> unit_packet(packet::Type type, const std::vector<uint8_t>& header, uint32_t offset, uint32_t chunk,
                                 const std::vector<uint8_t>& payload) {
  std::vector<uint8_t> bytes(packet::HEADER_BYTES + header.size() + chunk);
  const packet::UnitView view{header.data()};
  packet::put_header(bytes.data(), type, view.k(), view.m(), 0, view.map_epoch(), offset, chunk);
  memcpy(bytes.data() + packet::HEADER_BYTES, header.data(), header.size());
  for (uint32_t i = 0; i < chunk && offset + i < payload.size(); i++)
    bytes[packet::HEADER_BYTES + header.size() + i] = payload[offset + i];
  const uint32_t checked = packet::HEADER_BYTES + packet::DATA_HEADER_BYTES;
  packet::store16_be(bytes.data() + 22, packet::fold(packet::sum16(bytes.data(), checked)));
  return bytes;
}

PacketWorld::PacketWorld(Transcript& transcript)
    : transcript_(transcript), descriptors_before_(open_descriptors()), owner_(std::make_unique<Owner>()) {
  for (uint32_t i = 0; i <= Owner::HONEST; i++) owner_->allocate(i, 1 << 18, 0);
  for (uint32_t i = 0; i < PEERS; i++) {
    sockaddr_in address = at_port(0);
    socklen_t length = sizeof address;
    peers_[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (bind(peers_[i], reinterpret_cast<sockaddr*>(&address), length) < 0) fail("a peer has no socket");
    getsockname(peers_[i], reinterpret_cast<sockaddr*>(&address), &length);
    peer_ports_[i] = ntohs(address.sin_port);
  }
  owner_->on_packet = [this](const Completion& completion) {
    for (Receiver& receiver : receivers_) {
      if (receiver.qpn != completion.qpn) continue;
      if (completion.opcode == RECV_DUPLICATE) return;
      const uint32_t slot = completion.imm & 0xffff, header_bytes = (completion.imm >> 16) * 4;
      if (slot >= receiver.slots) fail("a unit in a slot that is none");
      if (completion.byte_length < header_bytes || completion.byte_length - header_bytes > receiver.unit_bytes)
        fail("a unit longer than its slot");
      if (std::count(receiver.whole.begin(), receiver.whole.end(), slot)) fail("a slot was filled that was not free");
      receiver.whole.push_back(slot);
      return;
    }
    fail("a completion of no receiver");
  };
}

PacketWorld::~PacketWorld() {
  for (int fd : peers_) {
    if (fd >= 0) close(fd);
  }
}

void PacketWorld::run(const std::string& line) {
  transcript_.line(line);
  std::istringstream in(line);
  std::string verb, word;
  in >> verb;
  const auto number64 = [&] {
    uint64_t value = 0;
    in >> value;
    return value;
  };
  const auto number = [&] { return static_cast<uint32_t>(number64()); };
  const auto lkey_of = [&](uint32_t region) {
    return owner_->region(region) ? owner_->region(region)->lkey : 0xffff'0000 + region;
  };

  if (verb == "open") {
    const uint32_t socket = number() % SOCKETS, seed = number(), loss = number();
    open(socket, seed, loss, number());
  } else if (verb == "sender") {
    Socket& socket = sockets_[number() % SOCKETS];
    if (socket.port != 0 && socket.sender == 0) {
      Command command{CommandType::add_packet_sender};
      command.id = socket.id;
      command.number = socket.sender = owner_->new_qpn();
      command.words[0] = number();
      owner_->submit(std::move(command));
    }
  } else if (verb == "shut") {
    shut(sockets_[number() % SOCKETS]);
  } else if (verb == "receiver") {
    Receiver receiver{};
    receiver.socket = number() % SOCKETS;
    receiver.peer = number() % PEERS;
    const uint32_t region = number();
    receiver.file = number64();
    receiver.writer_epoch = number();
    receiver.slots = number();
    receiver.unit_bytes = number();
    add_receiver(receiver, region);
  } else if (verb == "remove") {
    const uint32_t index = number();
    if (index < receivers_.size() && !receivers_[index].is_gone) {
      receivers_[index].is_gone = true;
      Command command{CommandType::remove_packet_receiver};
      command.id = sockets_[receivers_[index].socket].id;
      command.port = receivers_[index].qpn;
      owner_->submit_and_wait(std::move(command), &Command::number);
    }
  } else if (verb == "release") {
    const uint32_t index = number(), slot = number();
    // A slot that holds nothing as far as the owner knows is not its to give back; one that is none, it may name.
    if (index < receivers_.size() &&
        (slot >= receivers_[index].slots || std::erase(receivers_[index].whole, slot) > 0)) {
      WorkRequest request{};
      request.opcode = RELEASE_SLOT;
      request.qpn = receivers_[index].qpn;
      request.wr_id = slot;
      request.flags = static_cast<uint8_t>(number());
      owner_->post(request);
    }
  } else if (verb == "memory") {
    const uint32_t region = number(), offset = number();
    in >> word;
    const std::vector<uint8_t> bytes = unhex(word);
    owner_->sync();  // requests that name these headers have been read
    Region* into = region % Owner::REGIONS == Owner::SOURCE ? nullptr : owner_->region(region);
    if (into && into->contains(offset, static_cast<uint32_t>(bytes.size())))
      memcpy(into->base + offset, bytes.data(), bytes.size());
  } else if (verb == "stripe" || verb == "unit") {
    WorkRequest request{};
    request.opcode = verb == "unit" ? SEND_UNIT : SEND_STRIPE;
    request.flags = SIGNALED;
    request.qpn = sockets_[number() % SOCKETS].sender;
    request.words[0] = lkey_of(number());
    for (int i = 1; i < (verb == "unit" ? 6 : 7); i++) request.words[i] = number();
    request.words[verb == "unit" ? 6 : 7] = LOOPBACK;
    request.words[verb == "unit" ? 7 : 8] = peer_ports_[number() % PEERS];
    owner_->post(request);
  } else if (verb == "cancel") {
    WorkRequest request{};
    request.opcode = CANCEL;
    request.qpn = sockets_[number() % SOCKETS].sender;
    request.wr_id = owner_->last_wr_id() - number();
    owner_->post(request);
  } else if (verb == "say") {
    const uint32_t peer = number() % PEERS;
    const sockaddr_in to = at_port(sockets_[number() % SOCKETS].port);
    in >> word;
    const std::vector<uint8_t> bytes = unhex(word);
    sendto(peers_[peer], bytes.data(), bytes.size(), MSG_DONTWAIT, reinterpret_cast<const sockaddr*>(&to), sizeof to);
  } else if (verb == "dereg") {
    owner_->deregister(number() % Owner::HONEST);
  } else if (verb == "alloc") {
    const uint32_t index = number() % Owner::HONEST, bytes = number();
    owner_->allocate(index, std::min(std::max(bytes, 1u), 1u << 20), number());
  } else if (verb == "expect") {
    const uint32_t status = number();
    if (owner_->last_status != status)
      fail("a request ended with status " + std::to_string(owner_->last_status) + ", not " + std::to_string(status));
  } else if (verb == "calm") {
    owner_->expect_calm();
  } else if (verb == "sync") {
    owner_->sync();
    owner_->sync();
  } else {
    fail("no such line: " + line);
  }
  while (owner_->take()) {
  }
  hear();
}

void PacketWorld::open(uint32_t index, uint32_t seed, uint32_t loss, uint32_t reordering) {
  Socket& socket = sockets_[index];
  if (socket.id != 0) return;
  socket.id = next_id_++;
  Command command{CommandType::open_packet_socket};
  command.id = socket.id;
  command.host = "127.0.0.1";
  command.words[0] = seed;
  command.words[1] = std::min(loss, 900u);
  command.words[2] = reordering;
  command.packet_counters = std::make_shared<PacketCounters>();
  owner_->submit(std::move(command));
  owner_->wait_for([&] { return owner_->listening.count(socket.id) > 0; }, "a packet socket");
  socket.port = owner_->listening[socket.id];
  if (socket.port == 0) fail("a packet socket did not open");
}

void PacketWorld::shut(Socket& socket) {
  if (socket.id == 0) return;
  Command command{CommandType::close_packet_socket};
  command.id = socket.id;
  owner_->submit_and_wait(std::move(command), &Command::number);
  for (Receiver& receiver : receivers_) {
    if (&sockets_[receiver.socket] == &socket) receiver.is_gone = true;
  }
  socket = {};
}

void PacketWorld::add_receiver(Receiver receiver, uint32_t region_index) {
  const Region* region = owner_->region(region_index);
  const Socket& socket = sockets_[receiver.socket];
  if (socket.id == 0 || !owner_->is_usable(region_index) || region_index % Owner::REGIONS == Owner::SOURCE) return;
  receiver.unit_bytes = 1u << (9 + receiver.unit_bytes % 6);
  const uint32_t slot_bytes = packet::SLOT_PAYLOAD + (receiver.unit_bytes + 4095) / 4096 * 4096;
  receiver.slots = std::min<uint32_t>(1 + receiver.slots % 8, static_cast<uint32_t>(region->size) / slot_bytes);
  if (receiver.slots == 0) return;
  receiver.qpn = owner_->new_qpn();
  owner_->receivers[receiver.qpn] = true;
  Command command{CommandType::add_packet_receiver};
  command.id = socket.id;
  command.number = receiver.qpn;
  const uint32_t words[] = {region->lkey,
                            LOOPBACK,
                            peer_ports_[receiver.peer],
                            static_cast<uint32_t>(receiver.file),
                            static_cast<uint32_t>(receiver.file >> 32),
                            receiver.writer_epoch,
                            receiver.slots,
                            slot_bytes,
                            receiver.unit_bytes,
                            2};  // ms until what does not grow is given up: so that this happens
  memcpy(command.words, words, sizeof words);
  receivers_.push_back(receiver);
  owner_->submit(std::move(command));
}

void PacketWorld::hear() {
  uint8_t bytes[9216];
  for (int fd : peers_) {
    for (;;) {
      sockaddr_in from{};
      socklen_t length = sizeof from;
      const ssize_t got = recvfrom(fd, bytes, sizeof bytes, MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&from), &length);
      if (got < 0) break;
      frames_seen_++;
      const uint8_t type = bytes[5];
      if (type == packet::ACK || got < packet::HEADER_BYTES + packet::DATA_HEADER_BYTES) continue;
      const packet::UnitView unit{bytes + packet::HEADER_BYTES};
      uint32_t socket = 0;
      for (uint32_t i = 0; i < SOCKETS; i++) {
        if (sockets_[i].port == ntohs(from.sin_port)) socket = i;
      }
      heard.push_back({socket, type, unit.k(), unit.m(), unit.unit(), packet::load32_be(bytes + 16),
                       packet::load16_be(bytes + 20), unit.file(), unit.stripe(), unit.writer_epoch(), unit.counter(),
                       unit.map_epoch()});
    }
  }
  if (heard.size() > 256) heard.erase(heard.begin(), heard.end() - 128);
}

// Whatever has happened: a unit of somebody who behaves is placed. It is said again until it is, as packets get lost.
void PacketWorld::place_honest_unit() {
  for (Socket& socket : sockets_) shut(socket);
  open(0, 0, 0, 0);
  Receiver honest{};
  honest.file = 77;
  honest.writer_epoch = 3;
  honest.unit_bytes = 3;
  honest.slots = 1;
  add_receiver(honest, Owner::HONEST);
  std::vector<uint8_t> header(packet::DATA_HEADER_BYTES), payload(100, 0x5a);
  store32(header.data(), packet::UNIT_MAGIC);
  const uint8_t shape[] = {packet::UNIT_VERSION, 0, 2, 1, 0, 12, 0, 6};
  memcpy(header.data() + 4, shape, sizeof shape);
  packet::store64(header.data() + 16, honest.file);
  store32(header.data() + 32, 100);
  store32(header.data() + 36, 100);
  store32(header.data() + 44, honest.writer_epoch);
  const std::vector<uint8_t> packet = unit_packet(packet::UNIT, header, 0, 100, payload);
  const sockaddr_in to = at_port(sockets_[0].port);
  owner_->wait_for(
      [&] {
        if (!receivers_.back().whole.empty()) return true;
        sendto(peers_[0], packet.data(), packet.size(), MSG_DONTWAIT, reinterpret_cast<const sockaddr*>(&to),
               sizeof to);
        return false;
      },
      "an honest unit to be placed");
  const uint8_t* placed = owner_->region(Owner::HONEST)->base + packet::SLOT_PAYLOAD;
  if (memcmp(placed, payload.data(), payload.size()) != 0) fail("an honest unit was not placed as it was sent");
}

void PacketWorld::finish() {
  place_honest_unit();
  for (Socket& socket : sockets_) shut(socket);
  owner_->sync();
  if (owner_->outstanding() > 0) fail("requests never completed, and their packet socket is closed");
  owner_->finish();
  owner_.reset();
  for (int& fd : peers_) {
    close(fd);
    fd = -1;
  }
  const size_t now = open_descriptors();
  if (now != descriptors_before_)
    fail(std::to_string(now) + " descriptors are open, " + std::to_string(descriptors_before_) + " were before");
}

}  // namespace tartan::fuzz
