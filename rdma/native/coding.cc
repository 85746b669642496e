// Chooses a kernel and walks stripes in blocks that stay in the first caches, so that digests cost no second trip to
// memory.
#include "coding.h"

#include <atomic>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <new>

#include "crc32c.h"
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
  uint32_t crc;
  alignas(16) uint8_t summary[16];

  void begin() {
    crc = 0xffffffff;
    std::memset(summary, 0, sizeof summary);
  }

  void add(decltype(Kernel::digest) digest, const uint8_t* data, size_t len) { crc = digest(crc, data, len, summary); }

  void store(Digest* digest) const {
    digest->crc32c = ~crc;
    std::memcpy(digest->summary, summary, sizeof summary);
  }
};

size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

}  // namespace

struct CodingPlan {
  const Kernel* kernel;
  int inputs, outputs, groups;
  bool all_ones[kMaxUnits];  // rows whose coefficients are all 1
  Group group[kMaxUnits];
};

namespace {

// A block's bytes of all units together. Measured: from 24 to 128 KiB it makes little difference, as long as it stays
// well inside a second cache.
constexpr size_t kBlockBudget = 64 * 1024;
constexpr size_t kMinBlock = 2048, kMaxBlock = 16 * 1024;  // multiples of 256

size_t block_bytes(const CodingPlan& plan) {
  const size_t fair = kBlockBudget / static_cast<size_t>(plan.inputs + plan.outputs) & ~size_t{255};
  return fair < kMinBlock ? kMinBlock : smaller(fair, kMaxBlock);
}

// Bytes [begin, end) of every output, placed from out[…] on. Inputs end at different places: each piece between two
// ends has columns of its own.
void multiply_range(const CodingPlan& plan, const uint8_t* const* in, const size_t* in_len, uint8_t* const* out,
                    size_t begin, size_t end, size_t ahead) {
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
      for (int r = 0; r < group.ones_rows + group.general_rows; r++) rows[r] = out[group.outputs[r]] + (at - begin);
      plan.kernel->multiply(columns, count, group.ones_rows, group.general_rows, rows, piece_end - at, ahead);
    }
    at = piece_end;
  }
}

// How far ahead inputs are prefetched: the hardware's own prefetchers stop at a page's end.
constexpr size_t kAhead = 2048;

// Streamed outputs are computed in a stage of this many bytes each, digested there, and copied past the caches.
constexpr size_t kStreamBlock = 4096;

// More than a core's second cache holds: then outputs would not stay in it until someone reads them.
constexpr size_t kStreamFrom = 3 * 1024 * 1024;

std::atomic<size_t>& stream_from() {
  static std::atomic<size_t> bytes = [] {
    const char* set = std::getenv("TARTAN_STREAM_BYTES");
    return set && *set ? static_cast<size_t>(std::strtoull(set, nullptr, 10)) : kStreamFrom;
  }();
  return bytes;
}

bool streams(const CodingPlan& plan, uint8_t* const* out, size_t out_len) {
  const size_t units = static_cast<size_t>(plan.inputs + plan.outputs);
  if (plan.outputs == 0 || plan.outputs > kMaxGroupRows ||
      out_len * units < stream_from().load(std::memory_order_relaxed))
    return false;
  for (int r = 0; r < plan.outputs; r++) {
    if (reinterpret_cast<uintptr_t>(out[r]) % 64 != 0) return false;
  }
  return true;
}

bool all_equal(const size_t* lengths, int count, size_t wanted) {
  for (int i = 0; i < count; i++) {
    if (lengths[i] != wanted) return false;
  }
  return true;
}

// The digest of the sum of inputs of one length. Both parts of a digest are linear, but for the CRC's inversions: they
// cancel in pairs, and what an even number of inputs leaves is the checksum of as many zeros.
void derive_digest(const Digest* in, int inputs, size_t len, Digest* sum) {
  // The length is nearly always the last one.
  thread_local size_t zeros_len = 0;
  thread_local uint32_t zeros_crc = 0;
  *sum = {};
  for (int c = 0; c < inputs; c++) {
    sum->crc32c ^= in[c].crc32c;
    for (int i = 0; i < 16; i++) sum->summary[i] ^= in[c].summary[i];
  }
  if (inputs % 2 == 0) {
    if (len != zeros_len) zeros_crc = crc32c_of_zeros(zeros_len = len);
    sum->crc32c ^= zeros_crc;
  }
}

}  // namespace

CodingPlan* coding_plan_create(int inputs, int outputs, const uint8_t* matrix, const char* kernel_name) {
  const Kernel* kernel = find_kernel(kernel_name ? kernel_name : std::getenv("TARTAN_KERNEL"));
  if (kernel == nullptr || inputs < 1 || inputs > kMaxUnits || outputs < 0 || outputs > kMaxUnits) return nullptr;

  // One allocation: the plan, then the prepared coefficients, each group's table aligned for vector loads.
  const size_t header = (sizeof(CodingPlan) + 63) & ~size_t{63};
  const size_t tables =
      static_cast<size_t>(inputs * outputs) * kernel->coefficient_bytes + static_cast<size_t>(outputs) * 64;
  void* memory = std::aligned_alloc(64, (header + tables + 63) & ~size_t{63});
  if (memory == nullptr) return nullptr;
  CodingPlan* plan = new (memory) CodingPlan{kernel, inputs, outputs, 0, {}, {}};
  uint8_t* table = static_cast<uint8_t*>(memory) + header;

  const auto all_ones = [&](int row) {
    for (int c = 0; c < inputs; c++) {
      if (matrix[row * inputs + c] != 1) return false;
    }
    return true;
  };
  int ones[kMaxUnits], ones_count = 0, general[kMaxUnits], general_count = 0;
  for (int r = 0; r < outputs; r++) {
    plan->all_ones[r] = all_ones(r);
    if (plan->all_ones[r])
      ones[ones_count++] = r;
    else
      general[general_count++] = r;
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
      for (int r = begin; r < g; r++, table += kernel->coefficient_bytes)
        kernel->prepare(matrix[general[r] * inputs + c], table);
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

void coding_encode(const CodingPlan* plan, const uint8_t* const* in, const size_t* in_len, uint8_t* const* out,
                   size_t out_len, Digest* in_digest, Digest* out_digest) {
  // A longer input would be cut off silently, its digest included.
  for (int c = 0; c < plan->inputs; c++) assert(in_len[c] <= out_len);
  const bool stream = streams(*plan, out, out_len);
  if (in_digest == nullptr && out_digest == nullptr && !stream)
    return multiply_range(*plan, in, in_len, out, 0, out_len, kAhead);

  const bool derive = in_digest && out_digest && all_equal(in_len, plan->inputs, out_len);
  const auto& digest = plan->kernel->digest;
  const size_t block = stream ? kStreamBlock : block_bytes(*plan);
  // Digested inputs are in cache when they are multiplied. From memory it pays to fetch the next block meanwhile.
  const size_t ahead = !in_digest ? kAhead : stream ? block : 0;
  alignas(64) uint8_t stage[kMaxGroupRows][kStreamBlock];
  Running in_running[kMaxUnits], out_running[kMaxUnits];
  for (int c = 0; in_digest && c < plan->inputs; c++) in_running[c].begin();
  for (int r = 0; out_digest && r < plan->outputs; r++) out_running[r].begin();
  for (size_t begin = 0; begin < out_len; begin += block) {
    const size_t end = smaller(begin + block, out_len);
    for (int c = 0; in_digest && c < plan->inputs; c++) {
      if (in_len[c] > begin) in_running[c].add(digest, in[c] + begin, smaller(in_len[c], end) - begin);
    }
    uint8_t* at[kMaxUnits];
    for (int r = 0; r < plan->outputs; r++) at[r] = stream ? stage[r] : out[r] + begin;
    multiply_range(*plan, in, in_len, at, begin, end, ahead);
    for (int r = 0; out_digest && r < plan->outputs; r++) {
      if (!(derive && plan->all_ones[r])) out_running[r].add(digest, at[r], end - begin);
    }
    for (int r = 0; stream && r < plan->outputs; r++) plan->kernel->stream_copy(out[r] + begin, stage[r], end - begin);
  }
  if (stream) plan->kernel->stream_fence();

  for (int c = 0; in_digest && c < plan->inputs; c++) in_running[c].store(&in_digest[c]);
  for (int r = 0; out_digest && r < plan->outputs; r++) {
    if (derive && plan->all_ones[r])
      derive_digest(in_digest, plan->inputs, out_len, &out_digest[r]);
    else
      out_running[r].store(&out_digest[r]);
  }
}

void coding_stream_from(size_t bytes) { stream_from().store(bytes, std::memory_order_relaxed); }

uint32_t coding_crc32c(uint32_t crc, const void* data, size_t len) {
  return ~digest_kernel().digest(~crc, static_cast<const uint8_t*>(data), len, nullptr);
}

void coding_digest(const void* data, size_t len, Digest* out) {
  Running running;
  running.begin();
  running.add(digest_kernel().digest, static_cast<const uint8_t*>(data), len);
  running.store(out);
}

}  // namespace tartan
