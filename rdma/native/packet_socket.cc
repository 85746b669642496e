#include "packet_socket.h"

#include <errno.h>
#include <netinet/ip.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

namespace tartan {

namespace {
constexpr int BUFFER_SPACE = 4 << 20;
constexpr int64_t ACK_DELAY_US = 2000, RECLAIM_EVERY_US = 500'000, HELD_US = 3000;
constexpr uint32_t MAX_ACK_BYTES = 1400;

uint64_t key_of(uint32_t address, uint32_t port) { return uint64_t{address} << 16 | port; }
}  // namespace

int64_t monotonic_us() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1'000'000 + now.tv_nsec / 1000;
}

PacketSocket::PacketSocket(Services& services, uint32_t id, std::shared_ptr<PacketCounters> counters,
                           const Impairment& impairment)
    : id(id),
      services_(services),
      counters_(std::move(counters)),
      impairment_(impairment),
      random_(impairment.seed),
      timer_(*this),
      buffers_(BATCH * BUFFER_BYTES) {}

PacketSocket::~PacketSocket() { close_all(); }

bool PacketSocket::open(const std::string& host, uint32_t& port, std::string& why) {
  Address address;
  if (!Address::parse(host, port, address) || address.family() != AF_INET) {
    why = "it is no numeric IPv4 address and port";
    return false;
  }
  fd_ = Descriptor(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  timer_.fd = Descriptor(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
  const int no_fragments = IP_PMTUDISC_DO;
  if (fd_) {
    setsockopt(fd_.get(), IPPROTO_IP, IP_MTU_DISCOVER, &no_fragments, sizeof no_fragments);
    for (int option : {SO_RCVBUFFORCE, SO_SNDBUFFORCE, SO_RCVBUF, SO_SNDBUF}) {
      if (setsockopt(fd_.get(), SOL_SOCKET, option, &BUFFER_SPACE, sizeof BUFFER_SPACE) == 0 &&
          option == SO_SNDBUFFORCE)
        break;
    }
  }
  address.length = sizeof(sockaddr_in);
  if (!fd_ || !timer_.fd || bind(fd_.get(), address.get(), address.length) < 0 ||
      getsockname(fd_.get(), address.get(), &address.length) < 0 || !services_.watch(fd_, this, EPOLLIN) ||
      !services_.watch(timer_.fd, &timer_, EPOLLIN)) {
    why = strerror(errno);
    close_all();
    return false;
  }
  port = address.port();
  return true;
}

void PacketSocket::close_all() {
  sender_.reset();
  answering_.clear();
  receivers_.clear();
  fd_.reset();
  timer_.fd.reset();
}

void PacketSocket::add_sender(uint32_t qpn, uint32_t most_packets) {
  sender_ = std::make_unique<PacketSender>(services_, *counters_, qpn, most_packets);
}

void PacketSocket::add_receiver(uint32_t qpn, Region* region, const ReceiverOptions& options) {
  // The newest first: a session that was made again must not lose units to the one that is about to go.
  auto& receivers = receivers_[key_of(options.peer_address, options.peer_port)];
  receivers.insert(receivers.begin(), std::make_unique<PacketReceiver>(services_, *counters_, qpn, region, options));
  if (reclaim_due_us_ == 0) {
    reclaim_due_us_ = monotonic_us() + RECLAIM_EVERY_US;
    set_timer(reclaim_due_us_);
  }
}

PacketReceiver* PacketSocket::receiver(uint32_t qpn) {
  for (auto& [key, receivers] : receivers_) {
    for (auto& receiver : receivers) {
      if (receiver->qpn == qpn) return receiver.get();
    }
  }
  return nullptr;
}

void PacketSocket::remove_receiver(uint32_t qpn) {
  PacketReceiver* const gone = receiver(qpn);
  if (!gone) return;
  std::erase(answering_, gone);
  const uint64_t key = key_of(gone->options.peer_address, gone->options.peer_port);
  auto& receivers = receivers_[key];
  std::erase_if(receivers, [&](const auto& receiver) { return receiver.get() == gone; });
  if (receivers.empty()) receivers_.erase(key);
}

void PacketSocket::on_ready(uint32_t) {
  mmsghdr messages[BATCH];
  iovec pieces[BATCH];
  sockaddr_in from[BATCH];
  for (int round = 0; round < 4 && fd_; round++) {
    for (uint32_t i = 0; i < BATCH; i++) {
      pieces[i] = {buffers_.data() + i * BUFFER_BYTES, BUFFER_BYTES};
      messages[i] = {};
      messages[i].msg_hdr.msg_name = &from[i];
      messages[i].msg_hdr.msg_namelen = sizeof from[i];
      messages[i].msg_hdr.msg_iov = &pieces[i];
      messages[i].msg_hdr.msg_iovlen = 1;
    }
    const int count = recvmmsg(fd_.get(), messages, BATCH, 0, nullptr);
    if (count <= 0) break;
    for (int i = 0; i < count; i++) {
      const auto* packet = static_cast<const uint8_t*>(pieces[i].iov_base);
      if (impairment_.seed != 0)
        impair(packet, messages[i].msg_len, from[i]);
      else
        take(packet, messages[i].msg_len, from[i]);
    }
    answer(false);
    if (count < static_cast<int>(BATCH)) break;
  }
  pump();
}

bool PacketSocket::draw(uint32_t per_mille) {  // splitmix64
  uint64_t z = random_ += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (z ^ z >> 31) % 1000 < per_mille;
}

void PacketSocket::impair(const uint8_t* packet, uint32_t bytes, const sockaddr_in& from) {
  if (draw(impairment_.loss_per_mille)) return;
  if (held_.empty() && draw(impairment_.reorder_per_mille)) {
    held_.assign(packet, packet + bytes);
    held_from_ = from;
    held_due_us_ = monotonic_us() + HELD_US;
    set_timer(held_due_us_);
    return;
  }
  take(packet, bytes, from);
  if (!held_.empty() && !draw(500)) let_pass();
}

void PacketSocket::let_pass() {
  take(held_.data(), static_cast<uint32_t>(held_.size()), held_from_);
  held_.clear();
  held_due_us_ = 0;
}

void PacketSocket::take(const uint8_t* packet, uint32_t bytes, const sockaddr_in& from) {
  counters_->packets_received.add(1);
  if (bytes < packet::HEADER_BYTES || packet::load32_be(packet) != packet::MAGIC || packet[4] != packet::VERSION)
    return counters_->malformed.add(1);
  const uint8_t type = packet[5];
  if (type == packet::ACK) {
    if (packet::fold(packet::sum16(packet, packet::HEADER_BYTES)) != 0 || !sender_) return counters_->malformed.add(1);
    return sender_->take_ack(packet, bytes, from, monotonic_us());
  }
  const packet::UnitView header{packet + packet::HEADER_BYTES};
  const uint32_t checked = packet::HEADER_BYTES + packet::DATA_HEADER_BYTES;
  if ((type != packet::UNIT && type != packet::PARITY) || bytes < checked ||
      packet::fold(packet::sum16(packet, checked)) != 0 || !header.is_plausible() || packet[6] != header.k() ||
      packet[7] != header.m() || packet::load32_be(packet + 12) != header.map_epoch() ||
      packet::load16_be(packet + 20) == 0) {
    return counters_->malformed.add(1);
  }
  const auto found = receivers_.find(key_of(ntohl(from.sin_addr.s_addr), ntohs(from.sin_port)));
  if (found != receivers_.end()) {
    for (auto& receiver : found->second) {
      if (receiver->options.file != header.file() || receiver->options.writer_epoch != header.writer_epoch()) continue;
      const bool wanted = receiver->wants_ack();
      receiver->take(packet, bytes, monotonic_us() / 1000);
      if (!wanted && receiver->wants_ack()) answering_.push_back(receiver.get());
      return;
    }
  }
  counters_->unknown.add(1);
}

// Acknowledges what must be told at once, or all.
void PacketSocket::answer(bool all) {
  uint8_t packet[MAX_ACK_BYTES];
  for (PacketReceiver* receiver : answering_) {
    while (receiver->wants_ack() && (all || receiver->wants_ack_now())) {
      const uint32_t bytes = receiver->make_ack(packet, sizeof packet);
      sockaddr_in to{};
      to.sin_family = AF_INET;
      to.sin_addr.s_addr = htonl(receiver->options.peer_address);
      to.sin_port = htons(static_cast<uint16_t>(receiver->options.peer_port));
      // Lost like any other when it can't be sent: the writer's next packet brings another.
      if (sendto(fd_.get(), packet, bytes, MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&to), sizeof to) > 0)
        counters_->acks_sent.add(1);
    }
  }
  std::erase_if(answering_, [](PacketReceiver* receiver) { return !receiver->wants_ack(); });
  if (answering_.empty()) {
    ack_due_us_ = 0;
  } else if (ack_due_us_ == 0) {
    ack_due_us_ = monotonic_us() + ACK_DELAY_US;
    set_timer(ack_due_us_);
  }
}

void PacketSocket::pump() {
  if (!sender_ || !fd_) return;
  send_due_us_ = sender_->pump(fd_.get(), monotonic_us());
  if (send_due_us_ != 0) set_timer(send_due_us_);
}

void PacketSocket::set_timer(int64_t due_us) {
  if (timer_.due_us != 0 && timer_.due_us <= due_us) return;
  timer_.due_us = due_us;
  itimerspec spec{};
  spec.it_value.tv_sec = due_us / 1'000'000;
  spec.it_value.tv_nsec = due_us % 1'000'000 * 1000;
  timerfd_settime(timer_.fd.get(), TFD_TIMER_ABSTIME, &spec, nullptr);
}

void PacketSocket::Timer::on_ready(uint32_t) {
  uint64_t expirations;
  [[maybe_unused]] ssize_t got = read(fd.get(), &expirations, sizeof expirations);
  due_us = 0;
  const int64_t now = monotonic_us();
  if (socket.held_due_us_ != 0 && socket.held_due_us_ <= now) {
    socket.let_pass();
    socket.answer(false);
  }
  if (socket.ack_due_us_ != 0 && socket.ack_due_us_ <= now) socket.answer(true);
  if (socket.reclaim_due_us_ != 0 && socket.reclaim_due_us_ <= now) {
    for (auto& [key, receivers] : socket.receivers_) {
      for (auto& receiver : receivers) receiver->reclaim(now / 1000);
    }
    std::erase_if(socket.answering_, [](PacketReceiver* receiver) { return !receiver->wants_ack(); });
    socket.reclaim_due_us_ = socket.receivers_.empty() ? 0 : now + RECLAIM_EVERY_US;
  }
  socket.pump();
  for (int64_t due : {socket.held_due_us_, socket.ack_due_us_, socket.reclaim_due_us_, socket.send_due_us_}) {
    if (due > 0) socket.set_timer(std::max(due, now + 50));
  }
}

}  // namespace tartan
