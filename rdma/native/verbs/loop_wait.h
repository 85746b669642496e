// Waits for a descriptor in Node's event loop. Node-API has no such call, so libuv's own functions are used: Node
// exports them, their binary interface is stable within libuv 1, and handles are allocated by the size that libuv
// tells.
//
// Threads: the JavaScript thread. Lifetime: close() hands the handle to the loop, which calls `closed` in a later turn;
// the LoopWait is deleted by that, and the descriptor must stay open until close().
#pragma once
#include <node_api.h>

#include <functional>

namespace tartan::verbs {

class LoopWait {
 public:
  // nullptr when this runtime has no libuv loop.
  static LoopWait* open(napi_env env, int fd, std::function<void()> ready);
  void keep_alive(bool on);
  void close(std::function<void()> closed);

 private:
  LoopWait() = default;
  ~LoopWait() = default;
  static void on_poll(void* handle, int status, int events);
  static void on_close(void* handle);

  void* handle_ = nullptr;
  std::function<void()> ready_;
  std::function<void()> closed_;
};

}  // namespace tartan::verbs
