// rdma-core's libraries, opened at run time: the addon builds against their headers but needs them only when a verbs
// device is opened. What verbs.h defines inline (post, poll, request notification) goes through a context's own table.
//
// Threads: load() may be called on any thread; the table is constant afterwards and never unloaded, since librdmacm
// keeps open devices for the process.
#pragma once
#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <string>

namespace tartan::verbs {

// Members have no `ibv_` or `rdma_`, because verbs.h has macros of those names.
// clang-format off
#define TARTAN_IBV_FUNCTIONS(X) \
  X(query_device) \
  X(query_port) \
  X(query_gid) \
  X(alloc_pd) \
  X(dealloc_pd) X(reg_mr_iova) X(dereg_mr) X(create_comp_channel) X(destroy_comp_channel) X(create_cq) X(destroy_cq) \
  X(get_cq_event) X(ack_cq_events) X(get_async_event) X(ack_async_event) X(modify_qp) X(wc_status_str) \
  X(event_type_str) X(get_device_name) X(node_type_str) X(port_state_str) X(create_srq) X(modify_srq) \
  X(destroy_srq) X(get_device_list) X(free_device_list) X(open_device) X(close_device)
// clang-format on
// clang-format off
#define TARTAN_CM_FUNCTIONS(X) \
  X(create_event_channel) \
  X(destroy_event_channel) \
  X(create_id) \
  X(destroy_id) \
  X(bind_addr) X(resolve_addr) X(resolve_route) X(create_qp) X(destroy_qp) X(connect) X(accept) X(reject) \
  X(disconnect) X(listen) X(get_cm_event) X(ack_cm_event) X(get_devices) X(free_devices) X(set_option) \
  X(event_str) X(notify) X(get_src_port)
// clang-format on

struct RdmaCore {
#define X(name) decltype(&::ibv_##name) name = nullptr;
  struct {
    TARTAN_IBV_FUNCTIONS(X)
  } ibv;
#undef X
#define X(name) decltype(&::rdma_##name) name = nullptr;
  struct {
    TARTAN_CM_FUNCTIONS(X)
  } cm;
#undef X
};

// nullptr and `why` when a library or a function of it is missing.
const RdmaCore* load(std::string& why);
// After a load() that succeeded.
const RdmaCore& core();

}  // namespace tartan::verbs
