#include "device_choice.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include <fstream>
#include <vector>

#include "rdma_core.h"

namespace tartan::verbs {

namespace {

constexpr int MOST_GIDS = 256;

struct Candidate {
  std::string name;
  bool is_iwarp;
};

std::string attribute(const std::string& device, const std::string& path) {
  std::ifstream file("/sys/class/infiniband/" + device + "/" + path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::vector<Candidate> candidates() {
  std::vector<Candidate> found;
  int count = 0;
  ibv_device** devices = core().ibv.get_device_list(&count);
  for (int i = 0; devices && i < count; i++)
    found.push_back({core().ibv.get_device_name(devices[i]), devices[i]->transport_type != IBV_TRANSPORT_IB});
  if (devices) core().ibv.free_device_list(devices);
  return found;
}

// The device that has an address is the one an id bound to it gets.
ibv_context* context_by_address(const std::string& name, const sockaddr_in& address) {
  rdma_event_channel* channel = core().cm.create_event_channel();
  if (!channel) return nullptr;
  ibv_context* context = nullptr;
  rdma_cm_id* id = nullptr;
  if (core().cm.create_id(channel, &id, nullptr, RDMA_PS_TCP) == 0) {
    sockaddr_in wanted = address;
    if (core().cm.bind_addr(id, reinterpret_cast<sockaddr*>(&wanted)) == 0 && id->verbs &&
        name == core().ibv.get_device_name(id->verbs->device))
      context = id->verbs;
    core().cm.destroy_id(id);
  }
  core().cm.destroy_event_channel(channel);
  return context;
}

ibv_context* context_of(const std::string& name) {
  for (int index = 0; index < MOST_GIDS; index++) {
    const std::string text = attribute(name, "ports/1/gids/" + std::to_string(index));
    if (text.empty()) break;
    in6_addr gid;
    if (inet_pton(AF_INET6, text.c_str(), &gid) != 1 || !IN6_IS_ADDR_V4MAPPED(&gid)) continue;
    sockaddr_in address{};
    address.sin_family = AF_INET;
    memcpy(&address.sin_addr, gid.s6_addr + 12, 4);
    if (ibv_context* context = context_by_address(name, address)) return context;
  }
  // InfiniBand proper, whose GIDs are no addresses, or IPv6 alone: librdmacm then opens all devices.
  int count = 0;
  ibv_context** contexts = core().cm.get_devices(&count);
  ibv_context* context = nullptr;
  for (int i = 0; contexts && i < count; i++) {
    if (name == core().ibv.get_device_name(contexts[i]->device)) context = contexts[i];
  }
  if (contexts) core().cm.free_devices(contexts);  // the list; the devices stay open
  return context;
}

bool has_active_port(const std::string& name) {
  for (int port = 1;; port++) {
    const std::string state = attribute(name, "ports/" + std::to_string(port) + "/state");
    if (state.empty()) return false;
    if (state.find("ACTIVE") != std::string::npos) return true;
  }
}

}  // namespace

ibv_context* choose_device(const std::string& name, std::string& why) {
  const std::vector<Candidate> found = candidates();
  if (found.empty()) {
    why =
        "this machine has no RDMA device; on an ordinary network card: modprobe rdma_rxe && rdma link add rxe0 type "
        "rxe netdev eth0";
    return nullptr;
  }
  const Candidate* chosen = nullptr;
  std::string names;
  for (const Candidate& each : found) {
    names += (names.empty() ? "" : ", ") + each.name;
    if (!chosen && (name.empty() ? !each.is_iwarp && has_active_port(each.name) : name == each.name)) chosen = &each;
  }
  if (!chosen) {
    why = (name.empty() ? "no RDMA device has an active port" : "there is no RDMA device '" + name + "'") +
          " (found: " + names + ")";
    return nullptr;
  }
  if (chosen->is_iwarp) {
    why = "'" + chosen->name + "' is no InfiniBand or RoCE device: iWARP has no write with immediate";
    return nullptr;
  }
  ibv_context* context = context_of(chosen->name);
  if (!context)
    why = "the connection manager cannot use '" + chosen->name +
          "': " + (errno == ENODEV || errno == ENOENT ? "modprobe rdma_ucm" : strerror(errno));
  return context;
}

}  // namespace tartan::verbs
