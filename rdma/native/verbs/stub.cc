// Built in place of everything else here where rdma-core's headers are missing: says so when a device is wanted.
#include <node_api.h>

#include <initializer_list>

namespace {

napi_value refuse(napi_env env, napi_callback_info) {
  napi_throw_error(env, nullptr,
                   "the addon was built without rdma-core's headers: apt-get install libibverbs-dev librdmacm-dev, "
                   "then node rdma/build-addon.mjs");
  return nullptr;
}

}  // namespace

NAPI_MODULE_INIT() {
  for (const char* name : {"open", "devices"}) {
    napi_value function;
    napi_create_function(env, name, NAPI_AUTO_LENGTH, refuse, nullptr, &function);
    napi_set_named_property(env, exports, name, function);
  }
  return exports;
}
