#include "listener.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "handshake.h"

namespace tartan {

namespace {
constexpr int BACKLOG = 512;
constexpr size_t MAX_HANDSHAKES = 256;  // of each kind of stream
}  // namespace

bool Listener::open(const std::string& host, uint32_t& port, std::string& why) {
  Address wanted;
  if (!Address::parse(host, port, wanted)) {
    why = "it is no numeric address and port";
    return false;
  }
  // With port 0 the chosen port's Unix name may be taken by an earlier listener on another address: then choose again.
  for (int attempts = 0; attempts < (port == 0 ? 8 : 1); attempts++) {
    if (!open_tcp(wanted, why)) return false;
    if (open_shm(why)) {
      if (!services_.watch(tcp_fd_, this, EPOLLIN) || !services_.watch(shm_fd_, &shm_, EPOLLIN)) {
        why = strerror(errno);
        close_all();
        return false;
      }
      port = address_.port();
      return true;
    }
    close_all();
  }
  return false;
}

bool Listener::open_tcp(const Address& wanted, std::string& why) {
  address_ = wanted;
  tcp_fd_ = Descriptor(socket(address_.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int on = 1;
  if (tcp_fd_) setsockopt(tcp_fd_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  address_.length = sizeof address_.storage;
  if (!tcp_fd_ || bind(tcp_fd_.get(), wanted.get(), wanted.length) < 0 || listen(tcp_fd_.get(), BACKLOG) < 0 ||
      getsockname(tcp_fd_.get(), address_.get(), &address_.length) < 0) {
    why = strerror(errno);
    close_all();
    return false;
  }
  return true;
}

bool Listener::open_shm(std::string& why) {
  sockaddr_un name;
  const socklen_t length = abstract_name(address_, name);
  shm_fd_ = Descriptor(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (shm_fd_ && bind(shm_fd_.get(), reinterpret_cast<const sockaddr*>(&name), length) == 0 &&
      listen(shm_fd_.get(), BACKLOG) == 0)
    return true;
  why = std::string("its shared-memory name: ") + strerror(errno);
  return false;
}

void Listener::close_all() {
  tcp_fd_.reset();
  shm_fd_.reset();
  for (auto& handshakes : handshakes_) {
    for (Handshake* handshake : handshakes) handshake->abandon();
    handshakes.clear();
  }
}

void Listener::forget(Handshake* handshake) { std::erase(handshakes(handshake->transport()), handshake); }

void Listener::on_ready(uint32_t) { accept_from(tcp_fd_.get(), TransportKind::tcp); }

void Listener::accept_from(int listening_fd, TransportKind transport) {
  for (int accepted = 0; listening_fd >= 0 && accepted < 64; accepted++) {
    Address peer;
    peer.length = sizeof peer.storage;
    Descriptor fd(accept4(listening_fd, peer.get(), &peer.length, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno == EMFILE || errno == ENFILE) {
        services_.counters.errors.add(1);
        std::vector<Handshake*>& silent = handshakes(handshakes_[0].empty() ? TransportKind::shm : TransportKind::tcp);
        if (!silent.empty()) {
          silent.front()->evict();
          continue;
        }
        // Nothing can be accepted or refused; without a pause the readable listener would keep this thread busy.
        usleep(1000);
      }
      return;
    }
    uint32_t pid = 0;
    if (transport == TransportKind::shm && !is_trusted_peer(fd.get(), &pid)) {
      services_.counters.errors.add(1);
      continue;
    }
    if (transport == TransportKind::tcp) tune_tcp(fd.get());
    auto handshake =
        std::make_unique<Handshake>(services_, *this, std::move(fd), transport,
                                    transport == TransportKind::tcp ? peer.text() : "local:" + std::to_string(pid));
    if (!handshake->start()) {
      services_.counters.errors.add(1);
      continue;
    }
    std::vector<Handshake*>& silent = handshakes(transport);
    if (silent.size() >= MAX_HANDSHAKES) silent.front()->evict();
    silent.push_back(handshake.release());
  }
}

}  // namespace tartan
