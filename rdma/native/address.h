// Socket addresses: numeric hosts only (JavaScript resolves names), and the abstract Unix names that stand beside a
// listening address. Abstract names live in the network namespace, which is exactly where shared memory may be chosen.
#pragma once
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdint>
#include <string>

namespace tartan {

struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;

  static bool parse(const std::string& host, uint32_t port, Address& address);
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
  uint32_t port() const;
  void set_port(uint32_t port);
  bool is_wildcard() const;
  Address wildcard() const;  // of the same family and port
  std::string host() const;
  std::string text() const;  // host:port, [host]:port for IPv6
};

// "\0tartan-rdma/host:port", padded with zeros to the full length: the only form that every libuv can connect to.
socklen_t abstract_name(const Address& address, sockaddr_un& name);
// Whether the host is an address of this network namespace.
bool is_local(const Address& address);
// Whether the process at the other end of a Unix socket runs as us or as root.
bool is_trusted_peer(int fd, uint32_t* pid);

}  // namespace tartan
