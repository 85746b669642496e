#include "rdma_core.h"

#include <dlfcn.h>

#include <mutex>

namespace tartan::verbs {

namespace {

RdmaCore table;
std::mutex loading;
bool is_loaded = false;

void* open_library(const char* name, const char* package, std::string& why) {
  void* library = dlopen(name, RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE);  // libibverbs's providers look its symbols up
  if (!library) why = std::string(name) + " cannot be opened (" + dlerror() + "): apt-get install " + package;
  return library;
}

template <class Function>
bool find(void* library, const char* name, Function& into, std::string& why) {
  into = reinterpret_cast<Function>(dlsym(library, name));
  if (!into) why = std::string("rdma-core's libraries are too old: they have no ") + name;
  return into != nullptr;
}

}  // namespace

const RdmaCore* load(std::string& why) {
  std::lock_guard<std::mutex> lock(loading);
  if (is_loaded) return &table;
  void* ibverbs = open_library("libibverbs.so.1", "libibverbs1 ibverbs-providers", why);
  if (!ibverbs) return nullptr;
  void* rdmacm = open_library("librdmacm.so.1", "librdmacm1", why);
  if (!rdmacm) return nullptr;
#define X(name) \
  if (!find(ibverbs, "ibv_" #name, table.ibv.name, why)) return nullptr;
  TARTAN_IBV_FUNCTIONS(X)
#undef X
#define X(name) \
  if (!find(rdmacm, "rdma_" #name, table.cm.name, why)) return nullptr;
  TARTAN_CM_FUNCTIONS(X)
#undef X
  is_loaded = true;
  return &table;
}

const RdmaCore& core() { return table; }

}  // namespace tartan::verbs
