// What one kernel offers to coding.cc. A kernel is written for one kind of CPU; nothing outside coding.cc calls it.
//
// A file that holds a kernel for a newer CPU defines only functions with internal linkage and its one `Kernel`: an
// inline function of a shared header would be emitted there with that CPU's instructions, and the linker might keep
// that copy for all.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tartan {

// Rows that a kernel computes in one pass; more rows take more passes over a cached block.
constexpr int kMaxGroupRows = 4;

// One input of a multiplication.
struct Column {
  const uint8_t* in;
  // The prepared coefficients of this column, one for each general row, coefficient_bytes apart.
  const uint8_t* coefficients;
};

struct Kernel {
  const char* name;
  // Whether this CPU and its operating system run it.
  bool (*runs)();

  size_t coefficient_bytes;  // of one prepared coefficient, 64-byte aligned tables
  void (*prepare)(uint8_t coefficient, uint8_t* prepared);

  // out[0 … ones_rows + general_rows) = Σ coefficient·in over `columns`, `len` bytes of each; zeros where there are
  // none. ones_rows: 0 or 1; that row comes first and has all coefficients 1. In all, 1 to kMaxGroupRows rows.
  // Inputs are prefetched `ahead` bytes before their use (also beyond their ends, where nothing is read).
  void (*multiply)(const Column* columns, int count, int ones_rows, int general_rows, uint8_t* const* out, size_t len,
                   size_t ahead);

  // Carries on a CRC32C register (without the initial and final inversion) and, unless it is null, a 16-byte summary.
  // `data` starts at a multiple of 16 bytes from the beginning of what is summed.
  uint32_t (*digest)(uint32_t state, const uint8_t* data, size_t len, uint8_t* summary);

  // Copies past the caches. `to` is 64-byte aligned. Followed by stream_fence() before the bytes are announced.
  void (*stream_copy)(uint8_t* to, const uint8_t* from, size_t len);
  void (*stream_fence)();
};

extern const Kernel kKernelPortable;
#if defined(__x86_64__)
extern const Kernel kKernelAvx2;
extern const Kernel kKernelGfni;
#endif

}  // namespace tartan
