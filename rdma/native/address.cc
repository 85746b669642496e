#include "address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <unistd.h>

namespace tartan {

bool Address::parse(const std::string& host, uint32_t port, Address& address) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (port > 65535 || getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return false;
  memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.length = found->ai_addrlen;
  freeaddrinfo(found);
  return true;
}

uint32_t Address::port() const {
  return ntohs(family() == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port
                                    : reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
}

void Address::set_port(uint32_t port) {
  if (family() == AF_INET6)
    reinterpret_cast<sockaddr_in6*>(&storage)->sin6_port = htons(static_cast<uint16_t>(port));
  else
    reinterpret_cast<sockaddr_in*>(&storage)->sin_port = htons(static_cast<uint16_t>(port));
}

bool Address::is_wildcard() const {
  if (family() == AF_INET6) return IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_addr);
  return reinterpret_cast<const sockaddr_in*>(&storage)->sin_addr.s_addr == INADDR_ANY;
}

Address Address::wildcard() const {
  Address any;
  parse(family() == AF_INET6 ? "::" : "0.0.0.0", port(), any);
  return any;
}

std::string Address::host() const {
  char host[NI_MAXHOST];
  if (getnameinfo(get(), length, host, sizeof host, nullptr, 0, NI_NUMERICHOST) != 0) return "?";
  return host;
}

std::string Address::text() const {
  const std::string name = host();
  return (name.find(':') == std::string::npos ? name : "[" + name + "]") + ":" + std::to_string(port());
}

socklen_t abstract_name(const Address& address, sockaddr_un& name) {
  name = {};
  name.sun_family = AF_UNIX;
  const std::string text = "tartan-rdma/" + address.text();
  const size_t length = text.size() < sizeof name.sun_path - 1 ? text.size() : sizeof name.sun_path - 1;
  memcpy(name.sun_path + 1, text.data(), length);
  return sizeof name;
}

bool is_local(const Address& address) {
  Address probe = address;
  probe.set_port(0);
  const int fd = socket(address.family(), SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const bool bound = bind(fd, probe.get(), probe.length) == 0;  // only an address of our own can be bound
  close(fd);
  return bound;
}

bool is_trusted_peer(int fd, uint32_t* pid) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) < 0) return false;
  if (pid) *pid = static_cast<uint32_t>(credentials.pid);
  return credentials.uid == geteuid() || credentials.uid == 0;
}

}  // namespace tartan
