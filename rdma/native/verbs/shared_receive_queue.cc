#include "shared_receive_queue.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include <algorithm>

#include "adapter.h"
#include "statuses.h"

namespace tartan::verbs {

namespace {

constexpr uint32_t CHAIN = 32;  // receives handed to the adapter by one call

}  // namespace

SharedReceiveQueue::SharedReceiveQueue(Adapter& adapter, uint32_t number, uint32_t depth)
    : number(number), adapter_(adapter), depth_(depth), waiting_(256, adapter.counters.allocations) {}

SharedReceiveQueue::~SharedReceiveQueue() {
  if (srq_) core().ibv.destroy_srq(srq_);
}

bool SharedReceiveQueue::open(std::string& why) {
  if (adapter_.attributes.max_srq < 1) {
    why = "this adapter has no shared receive queues";
    return false;
  }
  depth_ = std::min(depth_, static_cast<uint32_t>(adapter_.attributes.max_srq_wr));
  ibv_srq_init_attr attributes{};
  attributes.attr = {depth_, 1, 0};
  if (!(srq_ = core().ibv.create_srq(adapter_.pd, &attributes))) {
    why = strerror(errno);
    return false;
  }
  slots_.resize(depth_);
  for (uint32_t slot = depth_; slot-- > 0;) free_.push_back(slot);
  return true;
}

void SharedReceiveQueue::post(const WorkRequest& request) {
  Entry entry{request.wr_id, posted_, true, request.gather_count > 0, nullptr, 0, 0};
  if (entry.has_buffer) {
    const GatherEntry& gather = request.rdma.gather[0];
    entry.region = adapter_.local(gather.lkey);
    if (!entry.region || !entry.region->contains(gather.offset, gather.length))
      return adapter_.complete(RECV, LOCAL_PROTECTION_ERROR, number, request.wr_id);
    entry.offset = gather.offset;
    entry.length = gather.length;
    adapter_.hold(entry.region);
  }
  posted_++;
  waiting_.push() = entry;
  adapter_.mark_dirty(this);
}

void SharedReceiveQueue::pump() {
  while (srq_ && !waiting_.empty() && !free_.empty()) {
    ibv_recv_wr requests[CHAIN];
    ibv_sge pieces[CHAIN];
    uint32_t slots[CHAIN];
    uint32_t count = 0;
    for (; count < CHAIN && !waiting_.empty() && !free_.empty(); count++) {
      const uint32_t slot = slots[count] = free_.back();
      free_.pop_back();
      const Entry& entry = slots_[slot] = waiting_.front();
      waiting_.pop();
      const bool has_piece = entry.has_buffer && entry.length > 0;
      if (has_piece) pieces[count] = {entry.offset, entry.length, entry.region->mr->lkey};
      requests[count] = {};
      requests[count].wr_id = BIT | uint64_t{number} << 32 | slot;
      requests[count].sg_list = &pieces[count];
      requests[count].num_sge = has_piece ? 1 : 0;
      if (count > 0) requests[count - 1].next = &requests[count];
    }
    ibv_recv_wr* bad = nullptr;
    const int error = ibv_post_srq_recv(srq_, requests, &bad);
    if (error == 0) continue;
    // Not taken by the adapter although it has room by our count: nothing that could be waited for.
    for (uint32_t i = static_cast<uint32_t>(bad ? bad - requests : 0); i < count; i++) {
      Entry& entry = slots_[slots[i]];
      finish(entry, RECV, LOCAL_PROTECTION_ERROR, number, 0, 0);
      free_.push_back(slots[i]);
    }
  }
}

void SharedReceiveQueue::on_completion(const ibv_wc& wc, uint32_t qpn) {
  const uint32_t slot = static_cast<uint32_t>(wc.wr_id);
  if (slot >= slots_.size() || !slots_[slot].is_used) return;
  const bool is_good = wc.status == IBV_WC_SUCCESS;
  const bool has_imm = is_good && (wc.wc_flags & IBV_WC_WITH_IMM) != 0;
  const uint8_t opcode =
      is_good && wc.opcode == IBV_WC_RECV_RDMA_WITH_IMM ? uint8_t{RECV_WRITE_WITH_IMM} : uint8_t{RECV};
  if (is_good) adapter_.counters.bytes_received.add(wc.byte_len);
  finish(slots_[slot], opcode, is_good ? uint8_t{SUCCESS} : recv_status(wc.status), qpn == 0 ? number : qpn,
         is_good ? wc.byte_len : 0, has_imm ? ntohl(wc.imm_data) : 0);
  free_.push_back(slot);
  if (!waiting_.empty()) adapter_.mark_dirty(this);
}

void SharedReceiveQueue::finish(Entry& entry, uint8_t opcode, uint8_t status, uint32_t qpn, uint32_t length,
                                uint32_t imm) {
  entry.is_used = false;
  adapter_.complete(opcode, status, qpn, entry.wr_id, length, imm);
  adapter_.release(entry.region);
}

bool SharedReceiveQueue::arm_limit(uint32_t limit) {
  ibv_srq_attr attributes{};
  attributes.srq_limit = limit;
  return srq_ && limit < depth_ && core().ibv.modify_srq(srq_, &attributes, IBV_SRQ_LIMIT) == 0;
}

void SharedReceiveQueue::destroy() {
  if (srq_) core().ibv.destroy_srq(srq_);
  srq_ = nullptr;
  std::vector<Entry*> left;
  for (Entry& entry : slots_) {
    if (entry.is_used) left.push_back(&entry);
  }
  std::sort(left.begin(), left.end(),
            [](const Entry* a, const Entry* b) { return static_cast<int32_t>(a->order - b->order) < 0; });
  for (Entry* entry : left) finish(*entry, RECV, FLUSHED, number, 0, 0);
  for (; !waiting_.empty(); waiting_.pop()) finish(waiting_.front(), RECV, FLUSHED, number, 0, 0);
}

}  // namespace tartan::verbs
