// Finds the context by which the connection manager knows a device: queue pairs must be made on that one, not on one of
// our own. Only the device wanted is opened: an adapter can be taken away only when no process has it open any more.
#pragma once
#include <infiniband/verbs.h>

#include <string>

namespace tartan::verbs {

// An empty name: the first InfiniBand or RoCE device with an active port. nullptr and `why` when there is none, or when
// the one named can't be used.
ibv_context* choose_device(const std::string& name, std::string& why);

}  // namespace tartan::verbs
