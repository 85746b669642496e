// ISA-L, opened at run time where it is installed (Debian: libisal2), to compare with. It needs no headers: these are
// the prototypes of the functions used. Its `rows` of ec_… are the parity alone; in gf_gen_… `m` is k + parity.
#pragma once
#include <dlfcn.h>

#include <type_traits>

struct Isal {
  void (*ec_init_tables)(int k, int rows, unsigned char* matrix, unsigned char* tables);  // tables: 32·k·rows bytes
  void (*ec_encode_data)(int len, int k, int rows, unsigned char* tables, unsigned char** data, unsigned char** coding);
  void (*gf_gen_rs_matrix)(unsigned char* matrix, int m, int k);
  void (*gf_gen_cauchy1_matrix)(unsigned char* matrix, int m, int k);
  int (*pq_gen)(int units, int len, void** array);  // units: data, P and Q; 32-byte aligned

  // Returns nullptr where the library is missing.
  static const Isal* open() {
    static Isal isal;
    static const bool found = [] {
      void* library = dlopen("libisal.so.2", RTLD_NOW | RTLD_LOCAL);
      if (library == nullptr) return false;
      const auto bind = [library](auto& function, const char* name) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
        return function != nullptr;
      };
      return bind(isal.ec_init_tables, "ec_init_tables") && bind(isal.ec_encode_data, "ec_encode_data") &&
             bind(isal.gf_gen_rs_matrix, "gf_gen_rs_matrix") &&
             bind(isal.gf_gen_cauchy1_matrix, "gf_gen_cauchy1_matrix") && bind(isal.pq_gen, "pq_gen");
    }();
    return found ? &isal : nullptr;
  }
};
