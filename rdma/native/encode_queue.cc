#include "encode_queue.h"

#include <algorithm>

#include "unit_header.h"

namespace tartan {

namespace {

constexpr uint8_t OUTPUT_FLAGS = DIGEST_OUTPUTS_WRITE | DIGEST_OUTPUTS_STORE;
constexpr uint8_t INPUT_FLAGS = DIGEST_INPUTS_WRITE | DIGEST_INPUTS_CHECK;

// Where the stripe's units and headers are, with every access checked against the region.
class Stripe {
 public:
  Stripe(const WorkRequest& wr, const Coder& coder, const Region& region)
      : at_(wr.encode), coder_(coder), region_(region) {}

  bool is_wellformed() const {
    return at_.stride > 0 && at_.stride % 64 == 0 && at_.stride < (1u << 31) &&
           at_.data_length <= uint64_t{coder_.k} * at_.stride;
  }
  uint32_t parity_length() const { return std::min(at_.stride, at_.data_length); }
  uint32_t length(uint32_t unit) const {
    if (unit >= coder_.k) return parity_length();
    const uint64_t before = uint64_t{unit} * at_.stride;
    if (at_.data_length <= before) return 0;
    return static_cast<uint32_t>(std::min<uint64_t>(at_.data_length - before, at_.stride));
  }
  // nullptr: outside the region.
  uint8_t* unit(uint32_t unit, uint32_t bytes) const {
    return inside(at_.units_offset + uint64_t{unit} * at_.stride, bytes);
  }
  uint8_t* header(uint32_t unit) const {
    const uint64_t offset = unit < coder_.k
                                ? at_.data_headers_offset + uint64_t{unit} * at_.data_header_stride
                                : at_.parity_headers_offset + uint64_t{unit - coder_.k} * at_.parity_header_stride;
    return inside(offset, coder_.header_bytes(unit));
  }

 private:
  uint8_t* inside(uint64_t offset, uint64_t bytes) const {
    return offset + bytes <= region_.size ? region_.base + offset : nullptr;
  }

  const decltype(WorkRequest::encode)& at_;
  const Coder& coder_;
  const Region& region_;
};

}  // namespace

EncodeQueue::~EncodeQueue() {
  for (; !requests_.empty(); requests_.pop()) {
    Coder* coder = requests_.front().coder;
    if (coder && --coder->references == 0 && coder->removed) delete coder;
  }
  for (auto& [id, coder] : coders_) delete coder;
}

void EncodeQueue::remove_coder(uint32_t id) {
  auto found = coders_.find(id);
  if (found == coders_.end()) return;
  Coder* coder = found->second;
  coders_.erase(found);
  coder->removed = true;
  if (coder->references == 0) delete coder;
}

void EncodeQueue::add_queue(uint32_t qpn) { queues_.push_back(qpn); }

void EncodeQueue::remove_queue(uint32_t qpn) {
  for (uint32_t i = requests_.head(); i != requests_.tail(); i++) {
    if (requests_.at(i).wr.qpn == qpn) requests_.at(i).flushed = true;
  }
  std::erase(queues_, qpn);
}

void EncodeQueue::post(const WorkRequest& wr) {
  auto coder = coders_.find(wr.encode.coder);
  Region* region = services_.regions.local(wr.encode.lkey);
  Request& request = requests_.push();
  request.wr = wr;
  request.coder = coder == coders_.end() ? nullptr : coder->second;
  request.region = region;
  request.flushed = std::find(queues_.begin(), queues_.end(), wr.qpn) == queues_.end();
  if (request.coder) request.coder->references++;
  services_.hold(region);
}

void EncodeQueue::run(uint64_t budget) {
  for (uint64_t bytes = 0; !requests_.empty() && bytes < budget; requests_.pop()) {
    Request& request = requests_.front();
    if (request.flushed)
      finish(request, {FLUSHED});
    else if (!request.coder)
      finish(request, {INVALID_REQUEST});
    else if (!request.region)
      finish(request, {LOCAL_PROTECTION_ERROR});
    else if (request.wr.opcode == VERIFY)
      finish(request, verify(request, bytes));
    else
      finish(request, encode(request, bytes));
  }
}

void EncodeQueue::finish(Request& request, Outcome outcome) {
  services_.complete(request.wr.opcode, outcome.status, request.wr.qpn, request.wr.wr_id, 0, 0, outcome.detail);
  services_.release(request.region);
  Coder* coder = request.coder;
  if (coder && --coder->references == 0 && coder->removed) delete coder;
}

EncodeQueue::Outcome EncodeQueue::encode(const Request& request, uint64_t& bytes) {
  const Coder& coder = *request.coder;
  const uint8_t flags = request.wr.flags;
  const Stripe stripe(request.wr, coder, *request.region);
  if (!stripe.is_wellformed() || (flags & INPUT_FLAGS) == INPUT_FLAGS || (flags & OUTPUT_FLAGS) == OUTPUT_FLAGS)
    return {INVALID_REQUEST};

  const uint8_t* in[Coder::MAX_UNITS];
  size_t in_length[Coder::MAX_UNITS];
  uint8_t* in_header[Coder::MAX_UNITS];
  uint8_t* out[Coder::MAX_UNITS];
  uint8_t* out_header[Coder::MAX_UNITS];
  Digest in_digest[Coder::MAX_UNITS];
  Digest out_digest[Coder::MAX_UNITS];
  const uint32_t out_length = stripe.parity_length();
  uint64_t input_bytes = 0;

  for (uint32_t i = 0; i < coder.inputs; i++) {
    in_length[i] = stripe.length(coder.input_units[i]);
    in[i] = stripe.unit(coder.input_units[i], static_cast<uint32_t>(in_length[i]));
    in_header[i] = (flags & INPUT_FLAGS) ? stripe.header(coder.input_units[i]) : nullptr;
    if ((in_length[i] > 0 && !in[i]) || ((flags & INPUT_FLAGS) && !in_header[i])) return {LOCAL_PROTECTION_ERROR};
    input_bytes += in_length[i];
  }
  bytes += input_bytes;
  for (uint32_t i = 0; i < coder.outputs; i++) {
    out[i] = stripe.unit(coder.output_units[i], out_length);
    out_header[i] = (flags & OUTPUT_FLAGS) ? stripe.header(coder.output_units[i]) : nullptr;
    if (!out[i] || ((flags & OUTPUT_FLAGS) && !out_header[i])) return {LOCAL_PROTECTION_ERROR};
  }
  uint8_t* data_header[Coder::MAX_UNITS * 8];
  const bool writes_list = (flags & DIGEST_OUTPUTS_WRITE) != 0;
  for (uint32_t unit = 0; writes_list && unit < coder.k; unit++) {
    data_header[unit] = stripe.header(unit);
    if (!data_header[unit]) return {LOCAL_PROTECTION_ERROR};
  }

  coding_encode(coder.plan, in, in_length, out, out_length, (flags & INPUT_FLAGS) ? in_digest : nullptr,
                (flags & OUTPUT_FLAGS) ? out_digest : nullptr);
  services_.counters.bytes_encoded.add(input_bytes);

  for (uint32_t i = 0; (flags & INPUT_FLAGS) && i < coder.inputs; i++) {
    const uint32_t header_bytes = coder.header_bytes(coder.input_units[i]);
    if (flags & DIGEST_INPUTS_CHECK) {
      if (header_mismatch(coder.digest, in_header[i], header_bytes, in_digest[i]) != 0)
        return {CHECKSUM_ERROR, coder.input_units[i]};
    } else {
      store_digest(coder.digest, in_header[i], in_digest[i]);
      seal(coder.digest, in_header[i], header_bytes);
    }
  }
  for (uint32_t i = 0; (flags & OUTPUT_FLAGS) && i < coder.outputs; i++) {
    const uint32_t unit = coder.output_units[i];
    // A short data unit being decoded was computed in full, zeros behind its end: its digest covers its own bytes only.
    if (stripe.length(unit) != out_length) coding_digest(out[i], stripe.length(unit), &out_digest[i]);
    store_digest(coder.digest, out_header[i], out_digest[i]);
    if (!writes_list) continue;
    for (uint32_t c = 0; unit >= coder.k && c < coder.k; c++) {
      store32(out_header[i] + coder.digest.crc_list_offset + 4 * c,
              load32(data_header[c] + coder.digest.payload_crc_offset));
    }
    seal(coder.digest, out_header[i], coder.header_bytes(unit));
  }
  return {SUCCESS};
}

EncodeQueue::Outcome EncodeQueue::verify(const Request& request, uint64_t& bytes) {
  const auto& at = request.wr.verify;
  const DigestLayout& layout = request.coder->digest;
  if (!layout_fits(layout, at.header_bytes)) return {INVALID_REQUEST};
  if (!request.region->contains(at.header_offset, at.header_bytes) ||
      !request.region->contains(at.payload_offset, at.payload_bytes)) {
    return {LOCAL_PROTECTION_ERROR};
  }
  Digest digest;
  coding_digest(request.region->base + at.payload_offset, at.payload_bytes, &digest);
  bytes += at.payload_bytes;
  services_.counters.bytes_verified.add(at.payload_bytes);
  const uint32_t mismatch = header_mismatch(layout, request.region->base + at.header_offset, at.header_bytes, digest);
  if (mismatch != 0) return {CHECKSUM_ERROR, mismatch};
  return {SUCCESS};
}

}  // namespace tartan
