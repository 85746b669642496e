#include "loop_wait.h"

#include <stdlib.h>

// As in uv.h, with handles as plain pointers.
extern "C" {
struct uv_loop_s;
size_t uv_handle_size(int type);
int uv_poll_init(struct uv_loop_s* loop, void* handle, int fd);
int uv_poll_start(void* handle, int events, void (*callback)(void* handle, int status, int events));
int uv_poll_stop(void* handle);
void uv_handle_set_data(void* handle, void* data);
void* uv_handle_get_data(const void* handle);
void uv_ref(void* handle);
void uv_unref(void* handle);
void uv_close(void* handle, void (*callback)(void* handle));
}

namespace tartan::verbs {

namespace {
constexpr int UV_POLL = 8;      // uv_handle_type
constexpr int UV_READABLE = 1;  // uv_poll_event
}  // namespace

LoopWait* LoopWait::open(napi_env env, int fd, std::function<void()> ready) {
  uv_loop_s* loop = nullptr;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok || !loop) return nullptr;
  auto* wait = new LoopWait;
  wait->handle_ = malloc(uv_handle_size(UV_POLL));
  wait->ready_ = std::move(ready);
  if (uv_poll_init(loop, wait->handle_, fd) != 0) {
    free(wait->handle_);
    delete wait;
    return nullptr;
  }
  uv_handle_set_data(wait->handle_, wait);
  uv_poll_start(wait->handle_, UV_READABLE, on_poll);
  uv_unref(wait->handle_);
  return wait;
}

void LoopWait::keep_alive(bool on) {
  if (on)
    uv_ref(handle_);
  else
    uv_unref(handle_);
}

void LoopWait::close(std::function<void()> closed) {
  closed_ = std::move(closed);
  uv_poll_stop(handle_);
  uv_close(handle_, on_close);
}

void LoopWait::on_poll(void* handle, int, int) { static_cast<LoopWait*>(uv_handle_get_data(handle))->ready_(); }

void LoopWait::on_close(void* handle) {
  auto* wait = static_cast<LoopWait*>(uv_handle_get_data(handle));
  const std::function<void()> closed = std::move(wait->closed_);
  free(handle);
  delete wait;
  if (closed) closed();
}

}  // namespace tartan::verbs
