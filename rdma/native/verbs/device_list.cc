#include "device_list.h"

#include <arpa/inet.h>
#include <string.h>

#include "rdma_core.h"

namespace tartan::verbs {

namespace {

std::string quoted(const char* text) {
  std::string out(1, '"');
  for (; *text; text++) {
    if (*text == '"' || *text == '\\') out += '\\';
    if (static_cast<unsigned char>(*text) >= 0x20) out += *text;
  }
  out += '"';
  return out;
}

// Elements between brackets, with commas.
class Json {
 public:
  explicit Json(char open) : text_(1, open), close_(open == '{' ? '}' : ']') {}
  Json& add(const std::string& value) {
    if (text_.size() > 1) text_ += ',';
    text_ += value;
    return *this;
  }
  Json& add(const char* name, const std::string& value) {
    std::string field = quoted(name);
    field += ':';
    field += value;
    return add(field);
  }
  Json& add(const char* name, uint64_t value) { return add(name, std::to_string(value)); }
  std::string end() {
    text_ += close_;
    return text_;
  }

 private:
  std::string text_;
  const char close_;
};

const char* link_layer(uint8_t layer) {
  return layer == IBV_LINK_LAYER_ETHERNET     ? "ethernet"
         : layer == IBV_LINK_LAYER_INFINIBAND ? "infiniband"
                                              : "unspecified";
}

std::string gids(ibv_context* context, uint8_t port, int length) {
  Json out('[');
  for (int index = 0; index < length; index++) {
    ibv_gid gid{};
    if (core().ibv.query_gid(context, port, index, &gid) != 0) break;
    static const ibv_gid none{};
    if (memcmp(&gid, &none, sizeof gid) == 0) continue;
    char text[INET6_ADDRSTRLEN];
    inet_ntop(AF_INET6, gid.raw, text, sizeof text);
    out.add(quoted(text));
  }
  return out.end();
}

std::string describe_port(ibv_context* context, uint8_t number) {
  Json out('{');
  out.add("port", number);
  ibv_port_attr port{};
  if (core().ibv.query_port(context, number, reinterpret_cast<_compat_ibv_port_attr*>(&port)) != 0)
    return out.add("state", quoted("unknown")).end();
  return out.add("state", quoted(core().ibv.port_state_str(port.state)))
      .add("linkLayer", quoted(link_layer(port.link_layer)))
      .add("activeMtu", 128u << port.active_mtu)
      .add("maxMtu", 128u << port.max_mtu)
      .add("gids", gids(context, number, port.gid_tbl_len < 64 ? port.gid_tbl_len : 64))
      .end();
}

std::string describe(ibv_context* context) {
  ibv_device_attr attributes{};
  core().ibv.query_device(context, &attributes);
  Json ports('[');
  for (int number = 1; number <= attributes.phys_port_cnt; number++)
    ports.add(describe_port(context, static_cast<uint8_t>(number)));
  return Json('{')
      .add("name", quoted(core().ibv.get_device_name(context->device)))
      .add("transport", quoted(context->device->transport_type == IBV_TRANSPORT_IB ? "ib" : "iwarp"))
      .add("nodeType", quoted(core().ibv.node_type_str(context->device->node_type)))
      .add("firmware", quoted(attributes.fw_ver))
      .add("maxRegionBytes", attributes.max_mr_size)
      .add("maxRegions", static_cast<uint64_t>(attributes.max_mr))
      .add("maxQueuePairs", static_cast<uint64_t>(attributes.max_qp))
      .add("maxRequests", static_cast<uint64_t>(attributes.max_qp_wr))
      .add("maxGather", static_cast<uint64_t>(attributes.max_sge))
      .add("maxCompletions", static_cast<uint64_t>(attributes.max_cqe))
      .add("maxReads", static_cast<uint64_t>(attributes.max_qp_rd_atom))
      .add("maxSharedReceives", static_cast<uint64_t>(attributes.max_srq_wr))
      .add("ports", ports.end())
      .end();
}

}  // namespace

std::string list_devices(std::string& why) {
  if (!load(why)) return "";
  int count = 0;
  ibv_device** devices = core().ibv.get_device_list(&count);
  Json out('[');
  for (int i = 0; devices && i < count; i++) {
    ibv_context* context = core().ibv.open_device(devices[i]);
    if (!context) continue;  // it went away meanwhile
    out.add(describe(context));
    core().ibv.close_device(context);
  }
  if (devices) core().ibv.free_device_list(devices);
  return out.end();
}

}  // namespace tartan::verbs
