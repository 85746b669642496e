// Linear coding over GF(2^8) (polynomial 0x11d) with digests of inputs and outputs computed in the same pass.
// The C++ face of the kernels; engine code includes only this header. No function here allocates, but create().
#pragma once
#include <cstddef>
#include <cstdint>

namespace tartan {

// CRC32C (Castagnoli, reflected, init and final xor 0xffffffff) and the lengthwise XOR of 16-byte lanes, the last lane
// padded with zeros.
struct Digest {
  uint32_t crc32c;
  alignas(16) uint8_t summary[16];
};

struct CodingPlan;  // a matrix prepared for one kernel

// matrix: outputs rows of inputs coefficients, row-major; inputs, outputs ≤ 32; outputs may be 0.
// kernel: "gfni", "avx2", "portable", or nullptr: the environment's TARTAN_KERNEL, else the best this CPU runs.
// Returns nullptr when the kernel's name is unknown or this CPU can't run it.
CodingPlan* coding_plan_create(int inputs, int outputs, const uint8_t* matrix, const char* kernel);
void coding_plan_destroy(CodingPlan*);
const char* coding_plan_kernel(const CodingPlan*);
// Comma-separated names of the kernels this CPU runs, best first.
const char* coding_kernels();

// out[r][0..out_len) = Σ matrix[r][c]·in[c]; an input shorter than out_len counts as padded with zeros (in_len[c] ≤
// out_len). in[c] may be null where in_len[c] is 0. Inputs and outputs do not overlap; no alignment is needed, 64 is
// fastest. in_digest: null, or one Digest per input (of its own in_len bytes). out_digest: null, or one per output (of
// out_len).
void coding_encode(const CodingPlan*, const uint8_t* const* in, const size_t* in_len, uint8_t* const* out,
                   size_t out_len, Digest* in_digest, Digest* out_digest);

// Outputs go to memory past the caches where a call's inputs and outputs together have at least `bytes` (and lie
// 64-byte aligned): to begin with TARTAN_STREAM_BYTES from the environment, else 3 MiB. Process-wide. 0: always;
// SIZE_MAX: never. It pays where outputs are out of the caches and not read soon: 1.3 to 1.5 times faster; it costs
// half the speed where they are in them.
void coding_stream_from(size_t bytes);

uint32_t coding_crc32c(uint32_t crc, const void* data, size_t len);  // crc: 0 to begin, or the result so far
void coding_digest(const void* data, size_t len, Digest* out);

}  // namespace tartan
