// A prepared linear map and the layout of the headers beside its units: what CoderSpec in rdma/src/device.ts says.
//
// Threads: built on the JavaScript thread (which has checked the spec), then the engine's alone until the engine
// deletes it: when JavaScript removed it and no queued request refers to it.
#pragma once
#include <cstdint>

#include "coding.h"

namespace tartan {

struct DigestLayout {
  uint32_t payload_crc_offset, seal_offset, summary_offset, crc_list_offset, data_header_bytes;
};

struct Coder {
  static constexpr uint32_t MAX_UNITS = 32;

  uint32_t id = 0;
  uint32_t k = 0;
  uint32_t inputs = 0, outputs = 0;
  uint32_t input_units[MAX_UNITS];
  uint32_t output_units[MAX_UNITS];
  DigestLayout digest{};
  CodingPlan* plan = nullptr;

  uint32_t references = 0;  // engine thread only
  bool removed = false;

  ~Coder() {
    if (plan) coding_plan_destroy(plan);
  }
  uint32_t header_bytes(uint32_t unit) const {
    return unit < k ? digest.data_header_bytes : digest.crc_list_offset + 4 * k;
  }
};

}  // namespace tartan
