#include "stream_world.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>

#include "../address.h"

namespace tartan::fuzz {

namespace {
constexpr uint32_t PLAIN_REGIONS[Owner::REGIONS][2] = {
    // bytes, access
    {65536, ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ},
    {5000, ACCESS_REMOTE_WRITE},
    {65536, 0},  // Owner::SOURCE
    {65536, 0},  // receives
    {65536, 0},  // answers to READs
    {4097, ACCESS_REMOTE_READ},
    {16384, 0},  // Owner::HONEST
};
constexpr size_t MOST_BYTES_AT_ONCE = 1 << 20;

std::vector<uint8_t> bytes_of(const FrameHeader& header) {
  const auto* at = reinterpret_cast<const uint8_t*>(&header);
  return {at, at + sizeof header};
}

int make_descriptor(const std::string& kind, uint32_t bytes) {
  if (kind == "pipe") {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0) return -1;
    close(ends[1]);
    return ends[0];
  }
  const int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return -1;
  // `short`: sealed, and smaller than what will be said of it
  if (ftruncate(fd, kind == "short" ? bytes / 2 : (bytes + 4095) / 4096 * 4096) < 0) fail("no memory for a descriptor");
  if (kind != "unsealed") fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  return fd;
}

Address loopback(uint32_t port) {
  Address address;
  if (!Address::parse("127.0.0.1", port, address)) fail("no loopback address");
  return address;
}

TransportKind kind_of(const std::string& word) { return word == "shm" ? TransportKind::shm : TransportKind::tcp; }
}  // namespace

StreamWorld::StreamWorld(Transcript& transcript)
    : transcript_(transcript), descriptors_before_(open_descriptors()), owner_(std::make_unique<Owner>()) {
  for (uint32_t i = 0; i < Owner::REGIONS; i++) owner_->allocate(i, PLAIN_REGIONS[i][0], PLAIN_REGIONS[i][1]);
  port_ = owner_->listen();
}

StreamWorld::~StreamWorld() {
  for (Peer& peer : peers_) {
    if (peer.fd >= 0) close(peer.fd);
  }
}

void StreamWorld::run(const std::string& line) {
  transcript_.line(line);
  std::istringstream in(line);
  std::string verb, word;
  in >> verb;
  const auto number = [&]() -> uint32_t {
    uint64_t value = 0;
    in >> value;
    return static_cast<uint32_t>(value);
  };
  const auto peer = [&]() -> Peer& { return peers_[number() % PEERS]; };
  const auto qpn_of = [&](uint32_t connection) {
    return connection < owner_->connections.size() ? owner_->connections[connection].qpn : 0xffff'ffff;
  };

  if (verb == "dial" || verb == "answer") {
    Peer& who = peer();
    in >> word;
    end(who, false);
    if (verb == "dial")
      dial(who, kind_of(word));
    else
      answer(who, kind_of(word));
  } else if (verb == "send") {
    Peer& who = peer();
    in >> word;
    send(who, unhex(word), {});
  } else if (verb == "pass") {
    Peer& who = peer();
    std::string kind;
    in >> kind;
    const uint32_t bytes = number(), count = number();
    in >> word;
    std::vector<int> descriptors;
    for (uint32_t i = 0; i < std::min(count, 16u); i++) descriptors.push_back(make_descriptor(kind, bytes));
    send(who, unhex(word), who.view.transport == TransportKind::shm ? descriptors : std::vector<int>{});
    for (int fd : descriptors) close(fd);
  } else if (verb == "deaf") {
    Peer& who = peer();
    who.is_deaf = number() != 0;
  } else if (verb == "shut") {
    Peer& who = peer();
    if (who.fd >= 0) shutdown(who.fd, SHUT_WR);
  } else if (verb == "close" || verb == "reset") {
    end(peer(), verb == "reset");
  } else if (verb == "post") {
    WorkRequest request{};
    request.qpn = qpn_of(number());
    request.opcode = static_cast<uint8_t>(number());
    request.flags = static_cast<uint8_t>(number());
    request.rdma.rkey = number();
    request.rdma.remote_offset = number();
    request.rdma.imm = number();
    for (uint32_t lkey; request.gather_count < 2 && in >> lkey;) {
      const uint32_t offset = number(), length = number();
      request.rdma.gather[request.gather_count++] = {lkey, offset, length};
    }
    owner_->post(request);
  } else if (verb == "recv") {
    WorkRequest request{};
    request.opcode = RECV;
    request.qpn = qpn_of(number());
    request.gather_count = 1;
    request.rdma.gather[0].lkey = number();
    request.rdma.gather[0].offset = number();
    request.rdma.gather[0].length = number();
    owner_->post(request);
  } else if (verb == "error") {
    owner_->to_error(number());
  } else if (verb == "destroy") {
    owner_->destroy(number());
  } else if (verb == "grant") {
    Command command{CommandType::grant_region};
    const uint32_t index = number();
    command.id = qpn_of(number());
    command.region = owner_->region(index);
    if (owner_->is_usable(index)) owner_->submit(std::move(command));
  } else if (verb == "dereg") {
    owner_->deregister(number());
  } else if (verb == "alloc") {
    const uint32_t index = number(), bytes = number();
    owner_->allocate(index, std::min(std::max(bytes, 1u), 1u << 20), number());
  } else if (verb == "scribble") {
    const uint32_t index = number(), offset = number(), length = number(), byte = number();
    // As a peer does that has mapped it: where it was granted, and for as long as it likes.
    if (Region* region = index % Owner::REGIONS == Owner::SOURCE ? nullptr : owner_->region(index)) {
      const size_t from = std::min<size_t>(offset, region->size);
      memset(region->base + from, static_cast<int>(byte), std::min<size_t>(length, region->size - from));
    }
  } else if (verb == "listen") {
    port_ = owner_->listen();
  } else if (verb == "unlisten") {
    owner_->close_listener();
  } else if (verb == "calm") {
    owner_->expect_calm();
  } else if (verb != "sync") {
    fail("no such line: " + line);
  }
  if (verb == "sync") {
    // Twice: what the first one overtook has been looked at when the second is answered.
    owner_->sync();
    owner_->sync();
  }
  while (owner_->take()) {
  }
  for (Peer& each : peers_) hear(each);
}

void StreamWorld::dial(Peer& peer, TransportKind transport) {
  const Address address = loopback(port_);
  if (transport == TransportKind::tcp) {
    peer.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(peer.fd, address.get(), address.length) < 0) return end(peer, false);
  } else {
    sockaddr_un name;
    const socklen_t length = abstract_name(address, name);
    peer.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(peer.fd, reinterpret_cast<const sockaddr*>(&name), length) < 0) return end(peer, false);
  }
  peer.view.is_open = true;
  peer.view.transport = transport;
}

void StreamWorld::answer(Peer& peer, TransportKind transport) {
  Address address = loopback(0);
  const int tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (bind(tcp, address.get(), address.length) < 0 || listen(tcp, 8) < 0 ||
      getsockname(tcp, address.get(), &address.length) < 0)
    fail(std::string("a peer cannot listen: ") + strerror(errno));
  int listening = tcp;
  if (transport == TransportKind::shm) {
    sockaddr_un name;
    const socklen_t length = abstract_name(address, name);
    listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (bind(listening, reinterpret_cast<const sockaddr*>(&name), length) < 0 || listen(listening, 8) < 0)
      fail(std::string("a peer cannot listen on shared memory: ") + strerror(errno));
  }
  owner_->connect(address.port(), transport == TransportKind::shm ? ConnectMode::shm : ConnectMode::tcp);
  owner_->wait_for([&] { return (peer.fd = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC)) >= 0; },
                   "the engine to connect");
  if (listening != tcp) close(listening);
  close(tcp);
  peer.view.is_open = true;
  peer.view.transport = transport;
}

bool StreamWorld::send(Peer& peer, const std::vector<uint8_t>& bytes, const std::vector<int>& descriptors) {
  if (peer.fd < 0) return false;
  size_t sent = 0;
  for (int blocked = 0; sent < bytes.size() && sent < MOST_BYTES_AT_ONCE;) {
    iovec piece{const_cast<uint8_t*>(bytes.data()) + sent, bytes.size() - sent};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 16)];
    if (sent == 0 && !descriptors.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(sizeof(int) * descriptors.size());
      cmsghdr* rights = CMSG_FIRSTHDR(&message);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(sizeof(int) * descriptors.size());
      memcpy(CMSG_DATA(rights), descriptors.data(), sizeof(int) * descriptors.size());
    }
    const ssize_t got = sendmsg(peer.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (got > 0) {
      sent += static_cast<size_t>(got);
    } else if (errno == EAGAIN && ++blocked < 4) {
      owner_->sync();
      hear(peer);
    } else {
      return false;  // it takes no more, or is gone
    }
  }
  return true;
}

// Reads what is there, so that the engine is never held up by a peer that is not deaf.
void StreamWorld::hear(Peer& peer) {
  if (peer.fd < 0 || peer.is_deaf || peer.view.has_ended) return;
  static uint8_t buffer[65536];
  for (;;) {
    iovec piece{buffer, sizeof buffer};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 16)];
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t got = recvmsg(peer.fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
      peer.view.has_ended = true;
      return;
    }
    for (cmsghdr* each = CMSG_FIRSTHDR(&message); each; each = CMSG_NXTHDR(&message, each)) {
      const size_t count = (each->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; i++) {
        int fd;
        memcpy(&fd, CMSG_DATA(each) + i * sizeof(int), sizeof fd);
        close(fd);
        peer.view.descriptors++;
      }
    }
    peer.heard.insert(peer.heard.end(), buffer, buffer + got);
    understand(peer);
  }
}

void StreamWorld::understand(Peer& peer) {
  size_t at = 0;
  while (at < peer.heard.size()) {
    const size_t left = peer.heard.size() - at;
    if (peer.view.preamble < sizeof(Preamble)) {
      const size_t part = std::min(left, sizeof(Preamble) - peer.view.preamble);
      peer.view.preamble += static_cast<uint32_t>(part);
      at += part;
    } else if (peer.skip > 0) {
      const size_t part = std::min<uint64_t>(left, peer.skip);
      peer.skip -= part;
      at += part;
    } else if (left >= sizeof(FrameHeader)) {
      FrameHeader header;
      memcpy(&header, peer.heard.data() + at, sizeof header);
      at += sizeof header;
      frame(peer, header);
    } else {
      break;
    }
  }
  peer.heard.erase(peer.heard.begin(), peer.heard.begin() + static_cast<std::ptrdiff_t>(at));
}

void StreamWorld::frame(Peer& peer, const FrameHeader& header) {
  frames_seen_++;
  PeerView& view = peer.view;
  view.acked = header.ack;
  view.recvs = header.recvs;
  switch (header.type) {
    case FRAME_WRITE:
    case FRAME_WRITE_IMM:
    case FRAME_SEND:
      peer.skip = header.length;
      view.requests++;
      return;
    case FRAME_PLACED:
    case FRAME_PLACED_IMM:
      view.requests++;
      return;
    case FRAME_READ:
      view.requests++;
      view.reads.push_back(header);
      return;
    case FRAME_READ_DATA:
      peer.skip = header.length;
      return;
    case FRAME_MAP:
      view.maps.push_back(header.rkey);
      return;
    case FRAME_NAK:
      view.is_refused = true;
      return;
    case FRAME_ACK:
    case FRAME_MAP_FD:
    case FRAME_UNMAP:
      return;
    default:
      fail("the engine sent a frame of type " + std::to_string(header.type));
  }
}

void StreamWorld::end(Peer& peer, bool with_reset) {
  if (peer.fd >= 0) {
    const linger reset{1, 0};
    if (with_reset) setsockopt(peer.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(peer.fd);
  }
  peer = {};
}

// Whatever has happened: who behaves is served.
void StreamWorld::serve_honest_peer(TransportKind transport) {
  port_ = owner_->listen();
  const size_t before = owner_->connections.size();
  Peer peer;
  dial(peer, transport);
  if (peer.fd < 0) fail("an honest peer cannot connect");
  const Preamble preamble = Preamble::make(transport);
  const auto* begin = reinterpret_cast<const uint8_t*>(&preamble);
  send(peer, {begin, begin + sizeof preamble}, {});
  // Streams that wait to be accepted may come up first: ours is the one that is served.
  FrameHeader message{};
  message.type = FRAME_SEND;
  message.length = 16;
  std::vector<uint8_t> bytes = bytes_of(message);
  const std::string text = "an honest peer..";
  bytes.insert(bytes.end(), text.begin(), text.end());
  send(peer, bytes, {});
  Region* into = owner_->region(Owner::HONEST);
  memset(into->base, 0, into->size);
  size_t posted_to = before;
  owner_->wait_for(
      [&] {
        for (; posted_to < owner_->connections.size(); posted_to++) {
          WorkRequest recv{};
          recv.opcode = RECV;
          recv.qpn = owner_->connections[posted_to].qpn;
          recv.gather_count = 1;
          recv.rdma.gather[0] = {into->lkey, static_cast<uint32_t>(posted_to % 512 * 16), 16};
          owner_->post(recv);
        }
        return !owner_->received.empty() && memmem(into->base, into->size, text.data(), text.size()) != nullptr;
      },
      "an honest peer to be served");
  end(peer, false);
}

void StreamWorld::finish() {
  for (TransportKind transport : {TransportKind::tcp, TransportKind::shm}) {
    owner_->received.clear();
    serve_honest_peer(transport);
  }
  for (Peer& peer : peers_) {
    hear(peer);
    end(peer, false);
  }
  owner_->finish();
  owner_.reset();
  const size_t now = open_descriptors();
  if (now != descriptors_before_)
    fail(std::to_string(now) + " descriptors are open, " + std::to_string(descriptors_before_) + " were before");
}

}  // namespace tartan::fuzz
