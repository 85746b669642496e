// Chooses a kernel and walks stripes in blocks that stay in the first caches, so that digests cost no second trip to memory.
#include "coding.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "kernel.h"

namespace tartan {
namespace {

constexpr int kMaxUnits = 32;

// Best first.
constexpr const Kernel* kKernels[] = {
#if defined(__x86_64__)
    &kKernelGfni,
    &kKernelAvx2,
#endif
    &kKernelPortable,
};

// name: null or empty for the best.
const Kernel* find_kernel(const char* name) {
  for (const Kernel* kernel : kKernels) {
    if ((name == nullptr || *name == 0 || std::strcmp(kernel->name, name) == 0) && kernel->runs()) return kernel;
  }
  return nullptr;
}

// For digests outside a plan. A plan refuses an unknown TARTAN_KERNEL; a checksum is the same by any kernel.
const Kernel& digest_kernel() {
  static const Kernel* const kernel = [] {
    const Kernel* named = find_kernel(std::getenv("TARTAN_KERNEL"));
    return named ? named : find_kernel(nullptr);
  }();
  return *kernel;
}

// Rows computed in one pass over the inputs.
struct Group {
  int ones_rows, general_rows;
  int outputs[kMaxGroupRows];   // output of each row; the row of ones, if any, first
  const uint8_t* coefficients;  // columns of general_rows prepared coefficients each
};

// The registers of a digest under way.
struct Running {
  uint32_t crc = 0xffffffff;
  alignas(16) uint8_t summary[16] = {};
};

void store_digest(const Running& running, Digest* digest) {
  digest->crc32c = ~running.crc;
  std::memcpy(digest->summary, running.summary, sizeof digest->summary);
}

size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

}  // namespace

struct CodingPlan {
  const Kernel* kernel;
  int inputs, outputs, groups;
  Group group[kMaxUnits];
};

namespace {

// A block's bytes of all units together: half of a typical L1 (measured by rdma/bench-kernels.mjs).
constexpr size_t kBlockBudget = 128 * 1024;
constexpr size_t kMinBlock = 2048, kMaxBlock = 16 * 1024;  // multiples of 256

size_t block_bytes(const CodingPlan& plan) {
  const size_t fair = kBlockBudget / static_cast<size_t>(plan.inputs + plan.outputs) & ~size_t{255};
  return fair < kMinBlock ? kMinBlock : smaller(fair, kMaxBlock);
}

// Bytes [begin, end) of every output. Inputs end at different places: each piece between two ends has columns of its own.
void multiply_range(const CodingPlan& plan, const uint8_t* const* in, const size_t* in_len, uint8_t* const* out, size_t begin, size_t end) {
  for (size_t at = begin; at < end;) {
    size_t piece_end = end;
    int active[kMaxUnits], count = 0;
    for (int c = 0; c < plan.inputs; c++) {
      if (in_len[c] <= at) continue;
      active[count++] = c;
      piece_end = smaller(piece_end, in_len[c]);
    }
    for (int g = 0; g < plan.groups; g++) {
      const Group& group = plan.group[g];
      const size_t column_bytes = static_cast<size_t>(group.general_rows) * plan.kernel->coefficient_bytes;
      Column columns[kMaxUnits];
      for (int i = 0; i < count; i++) {
        columns[i] = {in[active[i]] + at, group.coefficients + static_cast<size_t>(active[i]) * column_bytes};
      }
      uint8_t* rows[kMaxGroupRows];
      for (int r = 0; r < group.ones_rows + group.general_rows; r++) rows[r] = out[group.outputs[r]] + at;
      plan.kernel->multiply(columns, count, group.ones_rows, group.general_rows, rows, piece_end - at);
    }
    at = piece_end;
  }
}

}  // namespace

CodingPlan* coding_plan_create(int inputs, int outputs, const uint8_t* matrix, const char* kernel_name) {
  const Kernel* kernel = find_kernel(kernel_name ? kernel_name : std::getenv("TARTAN_KERNEL"));
  if (kernel == nullptr || inputs < 0 || inputs > kMaxUnits || outputs < 0 || outputs > kMaxUnits) return nullptr;

  // One allocation: the plan, then the prepared coefficients, each group's table aligned for vector loads.
  const size_t header = (sizeof(CodingPlan) + 63) & ~size_t{63};
  const size_t tables = static_cast<size_t>(inputs * outputs) * kernel->coefficient_bytes + static_cast<size_t>(outputs) * 64;
  void* memory = std::aligned_alloc(64, (header + tables + 63) & ~size_t{63});
  if (memory == nullptr) return nullptr;
  CodingPlan* plan = new (memory) CodingPlan{kernel, inputs, outputs, 0, {}};
  uint8_t* table = static_cast<uint8_t*>(memory) + header;

  const auto all_ones = [&](int row) {
    for (int c = 0; c < inputs; c++) {
      if (matrix[row * inputs + c] != 1) return false;
    }
    return true;
  };
  int ones[kMaxUnits], ones_count = 0, general[kMaxUnits], general_count = 0;
  for (int r = 0; r < outputs; r++) {
    if (all_ones(r)) ones[ones_count++] = r;
    else general[general_count++] = r;
  }
  for (int o = 0, g = 0; o < ones_count || g < general_count;) {
    Group& group = plan->group[plan->groups++];
    group = {};
    if (o < ones_count) group.outputs[group.ones_rows++] = ones[o++];
    const int begin = g;
    while (g < general_count && group.ones_rows + group.general_rows < kMaxGroupRows) {
      group.outputs[group.ones_rows + group.general_rows++] = general[g++];
    }
    group.coefficients = table;
    for (int c = 0; c < inputs; c++) {
      for (int r = begin; r < g; r++, table += kernel->coefficient_bytes) kernel->prepare(matrix[general[r] * inputs + c], table);
    }
    table += -reinterpret_cast<uintptr_t>(table) & 63;
  }
  return plan;
}

void coding_plan_destroy(CodingPlan* plan) { std::free(plan); }

const char* coding_plan_kernel(const CodingPlan* plan) { return plan->kernel->name; }

const char* coding_kernels() {
  static char names[64];
  static const bool once = [] {
    for (const Kernel* kernel : kKernels) {
      if (!kernel->runs()) continue;
      if (*names) std::strcat(names, ",");
      std::strcat(names, kernel->name);
    }
    return true;
  }();
  (void)once;
  return names;
}

void coding_encode(const CodingPlan* plan, const uint8_t* const* in, const size_t* in_len, uint8_t* const* out, size_t out_len,
                   Digest* in_digest, Digest* out_digest) {
  if (in_digest == nullptr && out_digest == nullptr) return multiply_range(*plan, in, in_len, out, 0, out_len);

  Running in_running[kMaxUnits], out_running[kMaxUnits];
  const auto& digest = plan->kernel->digest;
  const size_t block = block_bytes(*plan);
  for (size_t begin = 0; begin < out_len; begin += block) {
    const size_t end = smaller(begin + block, out_len);
    multiply_range(*plan, in, in_len, out, begin, end);
    if (in_digest) {
      for (int c = 0; c < plan->inputs; c++) {
        if (in_len[c] <= begin) continue;
        in_running[c].crc = digest(in_running[c].crc, in[c] + begin, smaller(in_len[c], end) - begin, in_running[c].summary);
      }
    }
    if (out_digest) {
      for (int r = 0; r < plan->outputs; r++) {
        out_running[r].crc = digest(out_running[r].crc, out[r] + begin, end - begin, out_running[r].summary);
      }
    }
  }
  for (int c = 0; in_digest && c < plan->inputs; c++) store_digest(in_running[c], &in_digest[c]);
  for (int r = 0; out_digest && r < plan->outputs; r++) store_digest(out_running[r], &out_digest[r]);
}

uint32_t coding_crc32c(uint32_t crc, const void* data, size_t len) {
  return ~digest_kernel().digest(~crc, static_cast<const uint8_t*>(data), len, nullptr);
}

void coding_digest(const void* data, size_t len, Digest* out) {
  Running running;
  running.crc = digest_kernel().digest(running.crc, static_cast<const uint8_t*>(data), len, running.summary);
  store_digest(running, out);
}

}  // namespace tartan
