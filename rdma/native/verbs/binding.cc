// The verbs addon's face: devices() and open(name, limits, sendQueue, completionQueue, wake); the latter's object
// drives one Adapter. What can be decided in TypeScript is decided there (src/verbs/).
//
// Threads: everything here runs on the JavaScript thread that called open(); there is no other.
// Lifetime: a Device lives until its object is collected or the environment ends, and then until libuv has let go of
// its handle. Its adapter ends earlier, by close() or by the environment's asynchronous cleanup hook. Registered memory
// is the soft device's, which is opened before this one: hooks run last first, so registrations end before the memory
// does.
#include <node_api.h>

#include <cstring>
#include <memory>
#include <string>

#include "adapter.h"
#include "device_list.h"
#include "loop_wait.h"

namespace tartan::verbs {
namespace {

struct Device {
  napi_env env = nullptr;
  std::unique_ptr<Adapter> adapter;
  LoopWait* wait = nullptr;
  napi_async_context async = nullptr;
  napi_ref wake = nullptr;
  napi_ref rings[2] = {nullptr, nullptr};
  napi_async_cleanup_hook_handle hook = nullptr;
  bool is_collected = false;
};

napi_value undefined(napi_env env) {
  napi_value value;
  napi_get_undefined(env, &value);
  return value;
}

napi_value uint32(napi_env env, uint32_t n) {
  napi_value value;
  napi_create_uint32(env, n, &value);
  return value;
}

napi_value string(napi_env env, const std::string& text) {
  napi_value value;
  napi_create_string_utf8(env, text.data(), text.size(), &value);
  return value;
}

napi_value fail(napi_env env, const std::string& message) {
  napi_throw_error(env, nullptr, message.c_str());
  return nullptr;
}

// The arguments of one call and the device that its function belongs to.
struct Call {
  Call(napi_env env, napi_callback_info info) : env(env) {
    void* data = nullptr;
    size_t count = 6;
    napi_get_cb_info(env, info, &count, arguments, nullptr, &data);
    device = static_cast<Device*>(data);
    adapter = device ? device->adapter.get() : nullptr;
  }
  uint32_t u32(int index) const {
    uint32_t value = 0;
    napi_get_value_uint32(env, arguments[index], &value);
    return value;
  }
  std::string text(int index) const {
    size_t length = 0;
    napi_get_value_string_utf8(env, arguments[index], nullptr, 0, &length);
    std::string value(length, '\0');
    napi_get_value_string_utf8(env, arguments[index], value.data(), length + 1, &length);
    return value;
  }
  template <class T>
  T* array(int index, size_t* length = nullptr) const {
    void* data = nullptr;
    size_t elements = 0;
    napi_typedarray_type type;
    napi_get_typedarray_info(env, arguments[index], &type, &elements, &data, nullptr, nullptr);
    if (length) *length = elements;
    return static_cast<T*>(data);
  }

  napi_env env;
  Device* device;
  Adapter* adapter;
  napi_value arguments[6];
};

napi_value ring(napi_env env, napi_callback_info info) {
  Call call(env, info);
  return uint32(env, call.adapter ? call.adapter->ring(call.u32(0)) : 0);
}

napi_value poll(napi_env env, napi_callback_info info) {  // (microseconds to look for completions)
  Call call(env, info);
  return uint32(env, call.adapter ? call.adapter->poll(call.u32(0)) : 0);
}

napi_value arm(napi_env env, napi_callback_info info) {
  Call call(env, info);
  if (call.adapter) call.adapter->arm();
  return undefined(env);
}

// → [type, id, qpn, number, 0, text]; called once for each OPCODE_EVENT.
napi_value take_event(napi_env env, napi_callback_info info) {
  Call call(env, info);
  Event event{};
  if (!call.adapter || !call.adapter->take_event(event)) return undefined(env);
  const napi_value fields[] = {uint32(env, static_cast<uint32_t>(event.type)),
                               uint32(env, event.id),
                               uint32(env, event.qpn),
                               uint32(env, event.number),
                               uint32(env, 0),
                               string(env, event.text)};
  napi_value array;
  napi_create_array_with_length(env, 6, &array);
  for (uint32_t i = 0; i < 6; i++) napi_set_element(env, array, i, fields[i]);
  return array;
}

napi_value add_region(napi_env env, napi_callback_info info) {  // (lkey, ArrayBuffer, access) → rkey
  Call call(env, info);
  void* base = nullptr;
  size_t bytes = 0;
  if (napi_get_arraybuffer_info(env, call.arguments[1], &base, &bytes) != napi_ok || !call.adapter)
    return fail(env, "an ArrayBuffer and an open device are expected");
  std::string why;
  const uint32_t rkey = call.adapter->add_region(base, bytes, call.u32(2), call.u32(0), why);
  return rkey == 0 ? fail(env, why) : uint32(env, rkey);
}

napi_value deregister(napi_env env, napi_callback_info info) {  // (lkey)
  Call call(env, info);
  if (call.adapter) call.adapter->deregister(call.u32(0));
  return undefined(env);
}

napi_value listen(napi_env env, napi_callback_info info) {  // (id, host, port, shared receive queue or 0)
  Call call(env, info);
  if (call.adapter) call.adapter->listen(call.u32(0), call.text(1), call.u32(2), call.u32(3));
  return undefined(env);
}

napi_value close_listener(napi_env env, napi_callback_info info) {  // (id, fence)
  Call call(env, info);
  if (call.adapter) call.adapter->close_listener(call.u32(0), call.u32(1));
  return undefined(env);
}

napi_value connect(napi_env env, napi_callback_info info) {  // (id, host, port, timeoutMs, shared receive queue or 0)
  Call call(env, info);
  if (call.adapter)
    call.adapter->connect(call.u32(0), call.text(1), call.u32(2), static_cast<int>(call.u32(3)), call.u32(4));
  return undefined(env);
}

napi_value abandon(napi_env env, napi_callback_info info) {  // (id)
  Call call(env, info);
  if (call.adapter) call.adapter->abandon(call.u32(0));
  return undefined(env);
}

napi_value to_error(napi_env env, napi_callback_info info) {  // (qpn, reason)
  Call call(env, info);
  if (call.adapter) call.adapter->to_error(call.u32(0), call.text(1));
  return undefined(env);
}

napi_value destroy_queue_pair(napi_env env, napi_callback_info info) {  // (qpn)
  Call call(env, info);
  if (call.adapter) call.adapter->destroy_queue_pair(call.u32(0));
  return undefined(env);
}

napi_value fence(napi_env env, napi_callback_info info) {  // (id)
  Call call(env, info);
  if (call.adapter) call.adapter->fence(call.u32(0));
  return undefined(env);
}

napi_value create_receives(napi_env env, napi_callback_info info) {  // (depth) → number
  Call call(env, info);
  std::string why;
  const uint32_t number = call.adapter ? call.adapter->create_receives(call.u32(0), why) : 0;
  return number == 0 ? fail(env, why) : uint32(env, number);
}

napi_value arm_receives(napi_env env, napi_callback_info info) {  // (number, limit) → whether the adapter took it
  Call call(env, info);
  return uint32(env, call.adapter && call.adapter->arm_receives(call.u32(0), call.u32(1)));
}

napi_value destroy_receives(napi_env env, napi_callback_info info) {  // (number) → whether it goes: nobody uses it
  Call call(env, info);
  return uint32(env, !call.adapter || call.adapter->destroy_receives(call.u32(0)));
}

napi_value keep_alive(napi_env env, napi_callback_info info) {
  Call call(env, info);
  if (call.device->wait) call.device->wait->keep_alive(call.u32(0) != 0);
  return undefined(env);
}

napi_value counters(napi_env env, napi_callback_info info) {  // (Float64Array)
  Call call(env, info);
  if (!call.adapter) return undefined(env);
  const Counter* all = &call.adapter->counters.requests;
  double* out = call.array<double>(0);
  for (size_t i = 0; i < sizeof(Counters) / sizeof(Counter); i++) out[i] = static_cast<double>(all[i].get());
  return undefined(env);
}

// ---- life ----

void wake(Device* device) {
  if (!device->adapter || !device->adapter->on_ready()) return;
  napi_env env = device->env;
  napi_handle_scope scope;
  if (napi_open_handle_scope(env, &scope) != napi_ok) return;
  napi_value callback, receiver, result;
  napi_get_reference_value(env, device->wake, &callback);
  napi_get_global(env, &receiver);
  if (napi_make_callback(env, device->async, receiver, callback, 0, nullptr, &result) == napi_pending_exception) {
    napi_value error;
    if (napi_get_and_clear_last_exception(env, &error) == napi_ok) napi_fatal_exception(env, error);
  }
  napi_close_handle_scope(env, scope);
}

// The adapter goes at once, the loop's handle with a later turn; the environment waits for that.
void stop(Device* device) {
  device->adapter.reset();
  if (!device->wait) return;
  LoopWait* wait = device->wait;
  device->wait = nullptr;
  wait->close([device] {
    if (device->hook) napi_remove_async_cleanup_hook(device->hook);
    device->hook = nullptr;
    if (device->is_collected) delete device;
  });
}

// Without a handle it is on its way out already: the turn that ends it removes the hook.
void on_environment_end(napi_async_cleanup_hook_handle, void* data) {
  Device* device = static_cast<Device*>(data);
  if (device->wait) stop(device);
}

napi_value close(napi_env env, napi_callback_info info) {
  Call call(env, info);
  Device* device = call.device;
  if (!device->adapter) return undefined(env);
  stop(device);
  for (napi_ref& reference : device->rings) napi_delete_reference(env, reference);
  napi_delete_reference(env, device->wake);
  napi_async_destroy(env, device->async);
  return undefined(env);
}

void collect(napi_env, void* data, void*) {
  Device* device = static_cast<Device*>(data);
  device->is_collected = true;
  if (device->wait)
    stop(device);
  else if (!device->hook)
    delete device;
}

// (name, limits: Uint32Array [send depth, receive depth, completion queue entries, inline bytes, ack timeout, reserves
// completions], sendQueue, completionQueue, wake)
napi_value open(napi_env env, napi_callback_info info) {
  Call call(env, info);
  auto device = std::make_unique<Device>();
  device->env = env;
  const uint32_t* given = call.array<uint32_t>(1);
  const Limits limits{given[0], given[1], given[2], given[3], static_cast<uint8_t>(given[4]), given[5] != 0};
  size_t request_words, completion_words;
  const WorkRequest* requests = call.array<WorkRequest>(2, &request_words);
  Completion* completions = call.array<Completion>(3, &completion_words);
  std::string why;
  device->adapter =
      Adapter::open(call.text(0), limits, requests, static_cast<uint32_t>(request_words * 4 / sizeof(WorkRequest)),
                    completions, static_cast<uint32_t>(completion_words * 4 / sizeof(Completion)), why);
  if (!device->adapter) return fail(env, why);
  Device* raw = device.get();
  device->wait = LoopWait::open(env, device->adapter->wait_fd(), [raw] { wake(raw); });
  if (!device->wait) return fail(env, "this runtime has no libuv event loop");
  for (int i = 0; i < 2; i++) napi_create_reference(env, call.arguments[2 + i], 1, &device->rings[i]);
  napi_create_reference(env, call.arguments[4], 1, &device->wake);
  napi_async_init(env, nullptr, string(env, "tartan-rdma-verbs"), &device->async);
  napi_add_async_cleanup_hook(env, on_environment_end, raw, &device->hook);

  const struct {
    const char* name;
    napi_callback function;
  } methods[] = {
      {"ring", ring},
      {"poll", poll},
      {"arm", arm},
      {"takeEvent", take_event},
      {"addRegion", add_region},
      {"deregister", deregister},
      {"listen", listen},
      {"closeListener", close_listener},
      {"connect", connect},
      {"abandon", abandon},
      {"toError", to_error},
      {"destroyQueuePair", destroy_queue_pair},
      {"createReceives", create_receives},
      {"armReceives", arm_receives},
      {"destroyReceives", destroy_receives},
      {"fence", fence},
      {"keepAlive", keep_alive},
      {"counters", counters},
      {"close", close},
  };
  napi_value object;
  napi_create_object(env, &object);
  for (const auto& method : methods) {
    napi_value function;
    napi_create_function(env, method.name, NAPI_AUTO_LENGTH, method.function, raw, &function);
    napi_set_named_property(env, object, method.name, function);
  }
  napi_set_named_property(env, object, "deviceName", string(env, device->adapter->name()));
  napi_wrap(env, object, device.release(), collect, nullptr, nullptr);
  return object;
}

napi_value devices(napi_env env, napi_callback_info) {  // → JSON
  std::string why;
  const std::string listed = list_devices(why);
  return listed.empty() ? fail(env, why) : string(env, listed);
}

}  // namespace
}  // namespace tartan::verbs

NAPI_MODULE_INIT() {
  napi_value function;
  napi_create_function(env, "open", NAPI_AUTO_LENGTH, tartan::verbs::open, nullptr, &function);
  napi_set_named_property(env, exports, "open", function);
  napi_create_function(env, "devices", NAPI_AUTO_LENGTH, tartan::verbs::devices, nullptr, &function);
  napi_set_named_property(env, exports, "devices", function);
  return exports;
}
