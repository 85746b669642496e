#include "handshake.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>

#include "listener.h"
#include "queue_pair.h"

namespace tartan {

namespace {
constexpr int64_t PREAMBLE_DEADLINE_MS = 5000;  // for whoever connects and says nothing
}

void tune_tcp(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

Handshake::Handshake(Services& services, Listener& listener, Descriptor fd, TransportKind transport, std::string remote)
    : services_(services),
      listener_(&listener),
      fd_(std::move(fd)),
      transport_(transport),
      remote_(std::move(remote)) {}

bool Handshake::start() {
  if (!services_.watch(fd_, this, EPOLLIN)) return false;
  services_.set_deadline(this, monotonic_ms() + PREAMBLE_DEADLINE_MS);
  return true;
}

Handshake::Handshake(Services& services, uint32_t request, Address address, ConnectMode mode, int64_t timeout_ms)
    : services_(services), request_(request), address_(address), mode_(mode), timeout_ms_(timeout_ms) {
  remote_ = address_.text();
}

void Handshake::begin() {
  services_.set_deadline(this, monotonic_ms() + timeout_ms_);
  if (mode_ != ConnectMode::tcp && connect_shm()) return;
  if (buried) return;
  if (mode_ == ConnectMode::shm) return give_up("no listener offers shared memory there in this network namespace");
  connect_tcp();
}

bool Handshake::connect_shm() {
  // A listener on the wildcard address counts only when the host is ours: in another namespace it is somebody else's.
  const Address candidates[2] = {address_, address_.wildcard()};
  for (const Address& candidate : candidates) {
    if (&candidate == &candidates[1] && (candidate.length == 0 || !is_local(address_))) break;
    sockaddr_un name;
    const socklen_t length = abstract_name(candidate, name);
    fd_ = Descriptor(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd_) break;
    if (connect(fd_.get(), reinterpret_cast<const sockaddr*>(&name), length) == 0 &&
        is_trusted_peer(fd_.get(), nullptr) && services_.watch(fd_, this, EPOLLIN)) {
      transport_ = TransportKind::shm;
      say_preamble();
      return true;
    }
    fd_.reset();
  }
  return false;
}

bool Handshake::connect_tcp() {
  transport_ = TransportKind::tcp;
  fd_ = Descriptor(socket(address_.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd_) {
    give_up(strerror(errno));
    return false;
  }
  tune_tcp(fd_.get());
  if (connect(fd_.get(), address_.get(), address_.length) < 0 && errno != EINPROGRESS) {
    give_up(strerror(errno));
    return false;
  }
  connecting_ = true;
  if (services_.watch(fd_, this, EPOLLOUT)) return true;
  give_up(strerror(errno));
  return false;
}

void Handshake::say_preamble() {
  const Preamble mine = Preamble::make(transport_);
  if (send(fd_.get(), &mine, sizeof mine, MSG_NOSIGNAL | MSG_DONTWAIT) != sizeof mine) give_up("the connection broke");
}

void Handshake::on_ready(uint32_t) {
  if (!fd_) return;
  if (connecting_) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return give_up(strerror(error));
    connecting_ = false;
    if (!services_.watch(fd_, this, EPOLLIN)) return give_up(strerror(errno));
    return say_preamble();
  }
  read_preamble();
}

void Handshake::read_preamble() {
  const ssize_t got =
      recv(fd_.get(), reinterpret_cast<char*>(&preamble_) + got_, sizeof preamble_ - got_, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return give_up("it closed the connection instead of answering");
  got_ += static_cast<uint32_t>(got);
  // Judged byte by byte, so that garbage is closed at once and not at the deadline.
  const Preamble expected = Preamble::make(transport_);
  // A verbs device hangs this out at its TCP port (src/verbs/door.ts).
  static constexpr char VERBS_SIGN[] = "tartan-rdma: a verbs device";
  if (memcmp(&preamble_, VERBS_SIGN, std::min<size_t>(got_, sizeof VERBS_SIGN - 1)) == 0) {
    if (got_ < sizeof VERBS_SIGN - 1) return;
    return give_up(
        "a verbs device listens there, over RDMA only: all of a cluster must use the same kind of device (--device)");
  }
  if (memcmp(&preamble_, &expected, got_) != 0) return give_up("it does not speak this protocol and version");
  if (got_ == sizeof preamble_) succeed();
}

void Handshake::succeed() {
  if (listener_) {
    say_preamble();
    if (!fd_) return;
  }
  QueuePair* pair = services_.adopt(std::move(fd_), transport_, remote_);
  if (!pair) return give_up("it cannot be watched");
  Event event{listener_ ? EventType::accepted : EventType::connected,
              listener_ ? listener_->id : request_,
              pair->qpn,
              0,
              static_cast<uint8_t>(transport_),
              remote_};
  services_.emit(std::move(event));
  if (listener_) listener_->forget(this);
  services_.bury(this);
}

void Handshake::give_up(const std::string& observation) {
  if (buried) return;
  services_.counters.errors.add(1);  // before the close: who sees that finds it counted
  fd_.reset();
  if (listener_)
    listener_->forget(this);
  else
    services_.emit({EventType::connect_failed, request_, 0, 0, 0, observation});
  services_.bury(this);
}

void Handshake::evict() { give_up("it said nothing while many others came"); }

void Handshake::abandon() {
  if (buried) return;
  fd_.reset();
  services_.bury(this);
}

void Handshake::on_deadline() {
  give_up("no answer within " + std::to_string(listener_ ? PREAMBLE_DEADLINE_MS : timeout_ms_) + " ms");
}

}  // namespace tartan
