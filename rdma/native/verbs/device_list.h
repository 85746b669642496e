// The RDMA devices of this machine with their attributes, as JSON (rdma/src/verbs/devices.ts has its type).
#pragma once
#include <string>

namespace tartan::verbs {

// An empty string and `why` when rdma-core can't be opened; "[]" when there are no devices.
std::string list_devices(std::string& why);

}  // namespace tartan::verbs
