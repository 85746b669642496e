// A file descriptor with one owner. Who lets it go first takes it out of the epoll set in which it was registered:
// closing is not enough, since the registration belongs to the open file, and a child that was forked meanwhile (it
// holds a copy until it executes something else) keeps that open. The set would then report a pointer to what has been
// deleted.
//
// Every descriptor is made close-on-exec by whoever makes it (SOCK_CLOEXEC, MFD_CLOEXEC, F_DUPFD_CLOEXEC …).
#pragma once
#include <sys/epoll.h>
#include <unistd.h>

#include <utility>

#include "pollable.h"

namespace tartan {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), epoll_fd_(std::exchange(other.epoll_fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this == &other) return *this;
    reset();
    fd_ = std::exchange(other.fd_, -1);
    epoll_fd_ = std::exchange(other.epoll_fd_, -1);
    return *this;
  }
  ~Descriptor() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

  void reset() {
    if (epoll_fd_ >= 0) epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd_, nullptr);
    if (fd_ >= 0) close(fd_);
    fd_ = epoll_fd_ = -1;
  }

  // Registers it, or changes what it is registered for; false (errno) when the kernel refuses.
  bool watch(int epoll_fd, Pollable* pollable, uint32_t epoll_events) {
    epoll_event event{};
    event.events = epoll_events;
    event.data.ptr = pollable;
    if (epoll_ctl(epoll_fd, epoll_fd_ < 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd_, &event) != 0) return false;
    epoll_fd_ = epoll_fd;
    return true;
  }

 private:
  int fd_ = -1;
  int epoll_fd_ = -1;  // the set in which it is registered, or -1
};

}  // namespace tartan
