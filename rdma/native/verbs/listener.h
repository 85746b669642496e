// A listening address of the connection manager. JavaScript thread only.
#pragma once
#include <cstdint>
#include <string>

#include "cm_object.h"

namespace tartan::verbs {

class Adapter;

class Listener : public CmObject {
 public:
  Listener(Adapter& adapter, uint32_t id, uint32_t receives) : id(id), receives(receives), adapter_(adapter) {}
  ~Listener() override;

  // Binds and listens; false and `why` when it cannot. `port` becomes the one chosen for 0.
  bool open(const std::string& host, uint32_t& port, std::string& why);
  void on_cm_event(const CmEvent& event) override;

  const uint32_t id;
  const uint32_t receives;  // the shared receive queue of its connections, 0: none

 private:
  Adapter& adapter_;
  rdma_cm_id* cm_ = nullptr;
};

}  // namespace tartan::verbs
