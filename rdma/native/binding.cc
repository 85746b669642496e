// The addon's face: open(sendQueue, completionQueue, wake) returns an object whose methods drive one Engine. Everything
// that can be decided in TypeScript is decided there (src/soft/); arguments are trusted to have the right types.
//
// Threads: every function here runs on the JavaScript thread that called open(), except wake_from_engine().
// Lifetime: a Device lives until its JavaScript object is collected or the environment ends. Its engine ends earlier:
// by close(), or by the environment's cleanup hook, which is added after the threadsafe function was made and therefore
// runs before that one is torn down. The rings' typed arrays are referenced until the engine's thread has been joined.
#include <node_api.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "engine.h"
#include "key_sequence.h"
#include "packet_counters.h"
#include "unit_header.h"

namespace tartan {
namespace {

struct Device {
  napi_env env = nullptr;
  std::unique_ptr<Engine> engine;
  napi_threadsafe_function wake = nullptr;
  napi_ref rings[2] = {nullptr, nullptr};
  std::map<uint32_t, Region*> regions;  // by lkey; those whose ArrayBuffer is not detached yet
  KeySequence rkeys;
  uint32_t next_lkey = 1;
  uint32_t next_coder = 1;
  std::map<uint32_t, std::shared_ptr<PacketCounters>> packet_counters;  // by socket
  bool hooked = false;
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

// Every function that JavaScript calls goes through here: what C++ throws (there is no memory) becomes a JavaScript
// error.
template <napi_callback function>
napi_value guarded(napi_env env, napi_callback_info info) {
  try {
    return function(env, info);
  } catch (const std::exception& error) {
    napi_throw_error(env, "ERR_NO_MEMORY", (std::string("no memory: ") + error.what()).c_str());
    return nullptr;
  }
}

// The arguments of one call and the device that its function belongs to.
struct Call {
  Call(napi_env env, napi_callback_info info) : env(env) {
    void* data = nullptr;
    size_t count = 6;
    napi_get_cb_info(env, info, &count, arguments, nullptr, &data);
    device = static_cast<Device*>(data);
  }
  uint32_t u32(int index) const {
    uint32_t value = 0;
    napi_get_value_uint32(env, arguments[index], &value);
    return value;
  }
  double f64(int index) const {
    double value = 0;
    napi_get_value_double(env, arguments[index], &value);
    return value;
  }
  std::string text(int index) const {
    size_t length = 0;
    napi_get_value_string_utf8(env, arguments[index], nullptr, 0, &length);
    std::string value(length, '\0');
    napi_get_value_string_utf8(env, arguments[index], value.data(), length + 1, &length);
    return value;
  }
  // A typed array's bytes (over an ArrayBuffer or a SharedArrayBuffer).
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
  napi_value arguments[6];
};

// ---- the rings ----

napi_value ring(napi_env env, napi_callback_info info) {
  Call call(env, info);
  return uint32(env, call.device->engine ? call.device->engine->ring(call.u32(0)) : 0);
}

napi_value poll(napi_env env, napi_callback_info info) {
  Call call(env, info);
  return uint32(env, call.device->engine ? call.device->engine->poll() : 0);
}

napi_value arm(napi_env env, napi_callback_info info) {
  Call call(env, info);
  if (call.device->engine) call.device->engine->arm();
  return undefined(env);
}

// → [type, id, qpn, number, transport, text]; called once for each OPCODE_EVENT.
napi_value take_event(napi_env env, napi_callback_info info) {
  Call call(env, info);
  Event event;
  if (!call.device->engine || !call.device->engine->take_event(event)) return undefined(env);
  const napi_value fields[] = {uint32(env, static_cast<uint32_t>(event.type)),
                               uint32(env, event.id),
                               uint32(env, event.qpn),
                               uint32(env, event.number),
                               uint32(env, event.transport),
                               string(env, event.text)};
  napi_value array;
  napi_create_array_with_length(env, 6, &array);
  for (uint32_t i = 0; i < 6; i++) napi_set_element(env, array, i, fields[i]);
  return array;
}

// ---- memory ----

void keep_memory(napi_env, void*, void*) {}  // the Device unmaps, not the garbage collector

// V8 counts the bytes of ArrayBuffers and collects garbage when many were made: no collection frees a region, and with
// a session of some MiB for every small file most of a node's CPU went there. So they are taken out of the count.
void count_as_heap(napi_env env, int64_t bytes) {
  int64_t unused = 0;
  napi_adjust_external_memory(env, bytes, &unused);
}

// (byteLength, access) → [lkey, rkey, ArrayBuffer]
napi_value allocate(napi_env env, napi_callback_info info) {
  Call call(env, info);
  Device& device = *call.device;
  const uint32_t rkey = device.rkeys.next();
  if (rkey == 0) return fail(env, "there is no key left");
  // Whatever throws or fails before the engine knows of the region gives its memory and its place in the list back.
  std::string why;
  std::unique_ptr<Region> owned(
      Region::allocate(static_cast<size_t>(call.f64(0)), call.u32(1), device.next_lkey, rkey, why));
  if (!owned) return fail(env, why);
  Region* const region = owned.get();
  const auto listed = device.regions.emplace(region->lkey, region).first;
  napi_value buffer;
  try {
    if (napi_create_external_arraybuffer(env, region->base, region->size, keep_memory, nullptr, &buffer) != napi_ok) {
      device.regions.erase(listed);
      return fail(env, "this runtime allows no external ArrayBuffers");
    }
    device.engine->submit({CommandType::add_region, 0, 0, 0, ConnectMode::automatic, region});
  } catch (...) {
    device.regions.erase(listed);
    throw;
  }
  owned.release();
  count_as_heap(env, -static_cast<int64_t>(region->size));
  device.next_lkey++;
  napi_value result;
  napi_create_array_with_length(env, 3, &result);
  napi_set_element(env, result, 0, uint32(env, region->lkey));
  napi_set_element(env, result, 1, uint32(env, region->rkey));
  napi_set_element(env, result, 2, buffer);
  return result;
}

napi_value grant_region(napi_env env, napi_callback_info info) {  // (lkey, qpn)
  Call call(env, info);
  auto found = call.device->regions.find(call.u32(0));
  if (call.device->engine && found != call.device->regions.end()) {
    call.device->engine->submit({CommandType::grant_region, call.u32(1), 0, 0, ConnectMode::automatic, found->second});
  }
  return undefined(env);
}

napi_value deregister(napi_env env, napi_callback_info info) {
  Call call(env, info);
  auto found = call.device->regions.find(call.u32(0));
  if (call.device->engine && found != call.device->regions.end()) {
    call.device->engine->submit({CommandType::deregister, 0, 0, 0, ConnectMode::automatic, found->second});
  }
  return undefined(env);
}

// (lkey, ArrayBuffer): after region_gone, or after close(). Detaches, then unmaps.
napi_value release(napi_env env, napi_callback_info info) {
  Call call(env, info);
  auto found = call.device->regions.find(call.u32(0));
  if (found == call.device->regions.end()) return undefined(env);
  // detaching takes them out; first, so that the sum never falls below what it was
  count_as_heap(env, static_cast<int64_t>(found->second->size));
  if (napi_detach_arraybuffer(env, call.arguments[1]) != napi_ok)
    return fail(env, "the region's ArrayBuffer can't be detached");
  delete found->second;
  call.device->regions.erase(found);
  return undefined(env);
}

// ---- coding ----

// (spec: Uint32Array [k, inputs, outputs, 5 × layout, input units…, output units…], matrix, kernel) → id
napi_value create_coder(napi_env env, napi_callback_info info) {
  Call call(env, info);
  const uint32_t* spec = call.array<uint32_t>(0);
  const uint8_t* matrix = call.array<uint8_t>(1);
  const std::string kernel = call.text(2);
  auto coder = std::make_unique<Coder>();
  coder->k = spec[0];
  coder->inputs = spec[1];
  coder->outputs = spec[2];
  coder->digest = {spec[3], spec[4], spec[5], spec[6], spec[7]};
  memcpy(coder->input_units, spec + 8, coder->inputs * 4);
  memcpy(coder->output_units, spec + 8 + coder->inputs, coder->outputs * 4);
  coder->plan = coding_plan_create(static_cast<int>(coder->inputs), static_cast<int>(coder->outputs), matrix,
                                   kernel.empty() ? nullptr : kernel.c_str());
  if (!coder->plan) return fail(env, "no such kernel on this CPU");
  coder->id = call.device->next_coder++;
  const uint32_t id = coder->id;
  Command command{CommandType::add_coder};
  command.coder = coder.release();
  call.device->engine->submit(std::move(command));
  return uint32(env, id);
}

napi_value create_coding_queue(napi_env env, napi_callback_info info) {
  Call call(env, info);
  const uint32_t qpn = call.device->engine->new_qpn();
  call.device->engine->submit({CommandType::add_coding_queue, qpn});
  return uint32(env, qpn);
}

// ---- control ----

template <CommandType type>
napi_value command_with_fence(napi_env env, napi_callback_info info) {  // (id, fence)
  Call call(env, info);
  if (call.device->engine) call.device->engine->submit({type, call.u32(0), 0, call.u32(1)});
  return undefined(env);
}

napi_value listen(napi_env env, napi_callback_info info) {  // (id, host, port)
  Call call(env, info);
  Command command{CommandType::listen, call.u32(0), call.u32(2)};
  command.host = call.text(1);
  call.device->engine->submit(std::move(command));
  return undefined(env);
}

napi_value connect(napi_env env, napi_callback_info info) {  // (id, host, port, timeoutMs, mode)
  Call call(env, info);
  Command command{CommandType::connect, call.u32(0), call.u32(2), call.u32(3), static_cast<ConnectMode>(call.u32(4))};
  command.host = call.text(1);
  call.device->engine->submit(std::move(command));
  return undefined(env);
}

napi_value to_error(napi_env env, napi_callback_info info) {  // (qpn, reason)
  Call call(env, info);
  Command command{CommandType::to_error, call.u32(0)};
  command.host = call.text(1);
  if (call.device->engine) call.device->engine->submit(std::move(command));
  return undefined(env);
}

// Whether the device keeps the process alive.
napi_value keep_alive(napi_env env, napi_callback_info info) {
  Call call(env, info);
  if (!call.device->wake) return undefined(env);
  if (call.u32(0))
    napi_ref_threadsafe_function(env, call.device->wake);
  else
    napi_unref_threadsafe_function(env, call.device->wake);
  return undefined(env);
}

napi_value counters(napi_env env, napi_callback_info info) {  // (Float64Array)
  Call call(env, info);
  if (!call.device->engine) return undefined(env);
  const Counters& counters = call.device->engine->counters;
  const Counter* all = &counters.requests;
  double* out = call.array<double>(0);
  for (size_t i = 0; i < sizeof(Counters) / sizeof(Counter); i++) out[i] = static_cast<double>(all[i].get());
  return undefined(env);
}

// ---- packet sockets ----

// (id, host, port, Uint32Array [seed, loss, reordering])
napi_value open_packet_socket(napi_env env, napi_callback_info info) {
  Call call(env, info);
  Command command{CommandType::open_packet_socket, call.u32(0), call.u32(2)};
  command.host = call.text(1);
  memcpy(command.words, call.array<uint32_t>(3), 3 * 4);
  command.packet_counters = call.device->packet_counters[call.u32(0)] = std::make_shared<PacketCounters>();
  call.device->engine->submit(std::move(command));
  return undefined(env);
}

// (id, Uint32Array) → qpn: a sender's [most packets], a receiver's words as in PacketSockets::add_receiver
template <CommandType type>
napi_value add_to_packet_socket(napi_env env, napi_callback_info info) {
  Call call(env, info);
  const uint32_t qpn = call.device->engine->new_qpn();
  Command command{type, call.u32(0), 0, qpn};
  size_t words = 0;
  const uint32_t* given = call.array<uint32_t>(1, &words);
  memcpy(command.words, given, std::min<size_t>(words, 12) * 4);
  call.device->engine->submit(std::move(command));
  return uint32(env, qpn);
}

napi_value remove_packet_receiver(napi_env env, napi_callback_info info) {  // (socket, qpn, fence)
  Call call(env, info);
  if (call.device->engine)
    call.device->engine->submit({CommandType::remove_packet_receiver, call.u32(0), call.u32(1), call.u32(2)});
  return undefined(env);
}

napi_value close_packet_socket(napi_env env, napi_callback_info info) {  // (socket, fence)
  Call call(env, info);
  if (call.device->engine) call.device->engine->submit({CommandType::close_packet_socket, call.u32(0), 0, call.u32(1)});
  return undefined(env);
}

// (socket, Float64Array, whether they are asked for the last time)
napi_value packet_counters(napi_env env, napi_callback_info info) {
  Call call(env, info);
  const auto found = call.device->packet_counters.find(call.u32(0));
  if (found == call.device->packet_counters.end()) return undefined(env);
  const Counter* all = &found->second->packets_sent;
  double* out = call.array<double>(1);
  for (size_t i = 0; i < sizeof(PacketCounters) / sizeof(Counter); i++) out[i] = static_cast<double>(all[i].get());
  if (call.u32(2) != 0) call.device->packet_counters.erase(found);
  return undefined(env);
}

// ---- life ----

// Joins the engine's thread; afterwards nothing but JavaScript refers to the regions.
void stop(Device* device) {
  if (device->engine) device->engine->close();
}

void on_environment_end(void* data) {
  Device* device = static_cast<Device*>(data);
  device->hooked = false;
  stop(device);
  for (auto& [lkey, region] : device->regions) delete region;  // no JavaScript runs any more
  device->regions.clear();
}

// Only when the engine's thread has been joined.
void let_go_of_rings(napi_env env, Device* device) {
  for (napi_ref& reference : device->rings) {
    if (reference) napi_delete_reference(env, reference);
    reference = nullptr;
  }
}

napi_value close(napi_env env, napi_callback_info info) {
  Call call(env, info);
  Device* device = call.device;
  if (!device->engine) return undefined(env);
  stop(device);
  device->engine.reset();
  napi_release_threadsafe_function(device->wake, napi_tsfn_abort);
  device->wake = nullptr;
  let_go_of_rings(env, device);
  if (device->hooked) napi_remove_env_cleanup_hook(env, on_environment_end, device);
  device->hooked = false;
  return undefined(env);
}

void destroy(napi_env env, void* data, void*) {
  Device* device = static_cast<Device*>(data);
  stop(device);
  if (device->hooked) napi_remove_env_cleanup_hook(env, on_environment_end, device);
  let_go_of_rings(env, device);  // it was never closed
  delete device;
}

// (sendQueue: Uint32Array, completionQueue: Uint32Array, wake: () => void)
napi_value open(napi_env env, napi_callback_info info) {
  Call call(env, info);
  auto device = std::make_unique<Device>();
  device->env = env;
  size_t request_words, completion_words;
  const WorkRequest* requests = call.array<WorkRequest>(0, &request_words);
  Completion* completions = call.array<Completion>(1, &completion_words);
  if (napi_create_threadsafe_function(env, call.arguments[2], nullptr, string(env, "tartan-rdma"), 0, 1, nullptr,
                                      nullptr, nullptr, nullptr, &device->wake) != napi_ok) {
    return fail(env, "cannot create a threadsafe function");
  }
  napi_unref_threadsafe_function(env, device->wake);
  napi_threadsafe_function wake = device->wake;
  const auto wake_from_engine = [wake] { napi_call_threadsafe_function(wake, nullptr, napi_tsfn_nonblocking); };
  std::string why;
  device->engine =
      Engine::open(requests, static_cast<uint32_t>(request_words * 4 / sizeof(WorkRequest)), completions,
                   static_cast<uint32_t>(completion_words * 4 / sizeof(Completion)), wake_from_engine, why);
  if (!device->engine) {
    napi_release_threadsafe_function(device->wake, napi_tsfn_abort);
    return fail(env, why);
  }
  for (int i = 0; i < 2; i++) napi_create_reference(env, call.arguments[i], 1, &device->rings[i]);
  napi_add_env_cleanup_hook(env, on_environment_end, device.get());
  device->hooked = true;

  const struct {
    const char* name;
    napi_callback function;
  } methods[] = {
      {"ring", guarded<ring>},
      {"poll", guarded<poll>},
      {"arm", guarded<arm>},
      {"takeEvent", guarded<take_event>},
      {"allocate", guarded<allocate>},
      {"grant", guarded<grant_region>},
      {"deregister", guarded<deregister>},
      {"release", guarded<release>},
      {"createCoder", guarded<create_coder>},
      {"removeCoder", guarded<command_with_fence<CommandType::remove_coder>>},
      {"createCodingQueue", guarded<create_coding_queue>},
      {"destroyCodingQueue", guarded<command_with_fence<CommandType::remove_coding_queue>>},
      {"listen", guarded<listen>},
      {"closeListener", guarded<command_with_fence<CommandType::close_listener>>},
      {"connect", guarded<connect>},
      {"toError", guarded<to_error>},
      {"destroyQueuePair", guarded<command_with_fence<CommandType::destroy_queue_pair>>},
      {"fence", guarded<command_with_fence<CommandType::fence>>},
      {"openPacketSocket", guarded<open_packet_socket>},
      {"addPacketSender", guarded<add_to_packet_socket<CommandType::add_packet_sender>>},
      {"addPacketReceiver", guarded<add_to_packet_socket<CommandType::add_packet_receiver>>},
      {"removePacketReceiver", guarded<remove_packet_receiver>},
      {"closePacketSocket", guarded<close_packet_socket>},
      {"packetCounters", guarded<packet_counters>},
      {"keepAlive", guarded<keep_alive>},
      {"counters", guarded<counters>},
      {"close", guarded<close>},
  };
  napi_value object;
  napi_create_object(env, &object);
  for (const auto& method : methods) {
    napi_value function;
    napi_create_function(env, method.name, NAPI_AUTO_LENGTH, method.function, device.get(), &function);
    napi_set_named_property(env, object, method.name, function);
  }
  napi_wrap(env, object, device.release(), destroy, nullptr, nullptr);
  return object;
}

napi_value kernels(napi_env env, napi_callback_info) { return string(env, coding_kernels()); }

}  // namespace
}  // namespace tartan

NAPI_MODULE_INIT() {
  napi_value function;
  napi_create_function(env, "open", NAPI_AUTO_LENGTH, tartan::guarded<tartan::open>, nullptr, &function);
  napi_set_named_property(env, exports, "open", function);
  napi_create_function(env, "kernels", NAPI_AUTO_LENGTH, tartan::kernels, nullptr, &function);
  napi_set_named_property(env, exports, "kernels", function);
  return exports;
}
