#include "listener.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "../address.h"
#include "adapter.h"

namespace tartan::verbs {

namespace {
constexpr int BACKLOG = 256;
}

Listener::~Listener() {
  if (cm_) core().cm.destroy_id(cm_);
}

bool Listener::open(const std::string& host, uint32_t& port, std::string& why) {
  Address address;
  if (!Address::parse(host, port, address)) {
    why = "it is no numeric address and port";
    return false;
  }
  if (core().cm.create_id(adapter_.channel, &cm_, static_cast<CmObject*>(this), RDMA_PS_TCP) != 0) {
    cm_ = nullptr;
    why = strerror(errno);
    return false;
  }
  if (core().cm.bind_addr(cm_, address.get()) != 0) {
    why = errno == ENODEV || errno == EADDRNOTAVAIL ? "no RDMA device has this address" : strerror(errno);
    return false;
  }
  if (!adapter_.is_ours(cm_)) {
    why = std::string("the address belongs to ") + core().ibv.get_device_name(cm_->verbs->device) +
          ", this device is " + adapter_.name();
    return false;
  }
  if (core().cm.listen(cm_, BACKLOG) != 0) {
    why = strerror(errno);
    return false;
  }
  port = ntohs(core().cm.get_src_port(cm_));
  return true;
}

void Listener::on_cm_event(const CmEvent& event) {
  if (event.type == RDMA_CM_EVENT_CONNECT_REQUEST) adapter_.adopt_request(id, event);
}

}  // namespace tartan::verbs
