// What the engine offers to its parts. Engine thread only; outlives every part.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "completion_queue.h"
#include "descriptor.h"
#include "frame.h"
#include "mailbox.h"
#include "pollable.h"
#include "region.h"

namespace tartan {

class QueuePair;

class Services {
 public:
  Services(CompletionQueue& completions, Mailbox<Event>& events, Counters& counters, std::atomic<uint32_t>& next_qpn,
           int epoll_fd)
      : completions(completions), events(events), counters(counters), next_qpn(next_qpn), epoll_fd(epoll_fd) {}

  void complete(uint8_t opcode, uint8_t status, uint32_t qpn, uint32_t wr_id, uint32_t byte_length = 0,
                uint32_t imm = 0, uint32_t detail = 0, uint32_t extra = 0) {
    completions.push(Completion{wr_id, status, opcode, 0, qpn, byte_length, imm, detail, extra, 0});
  }
  void emit(Event event) {
    events.put(std::move(event));
    completions.push(Completion{0, 0, OPCODE_EVENT, 0, 0, 0, 0, 0, 0, 0});
  }

  void hold(Region* region) {
    if (region) region->references++;
  }
  void release(Region* region) {
    if (region && --region->references == 0 && region->revoked) emit({EventType::region_gone, region->lkey});
  }

  // Registers a descriptor, or changes what it is registered for; false when the kernel refuses.
  bool watch(Descriptor& fd, Pollable* pollable, uint32_t epoll_events) {
    return fd.watch(epoll_fd, pollable, epoll_events);
  }
  void set_deadline(Pollable* pollable, int64_t deadline_ms);
  void bury(Pollable* pollable);

  // Hands an established stream to a new queue pair; nullptr when the kernel refuses to watch it.
  QueuePair* adopt(Descriptor fd, TransportKind transport, std::string remote);

  // nullptr: it is gone, or a coding queue's.
  QueuePair* queue_pair(uint32_t qpn) const {
    const auto found = queue_pairs.find(qpn);
    return found == queue_pairs.end() ? nullptr : found->second;
  }

  CompletionQueue& completions;
  Mailbox<Event>& events;
  Counters& counters;
  std::atomic<uint32_t>& next_qpn;  // coding queues are numbered from it too, on the JavaScript thread
  const int epoll_fd;
  RegionTable regions;
  std::vector<Pollable*> timers;
  std::vector<Pollable*> graveyard;
  std::unordered_map<uint32_t, QueuePair*> queue_pairs;  // by qpn, those that live
  std::vector<QueuePair*> dirty;                         // have something to send, or budget left to use
};

int64_t monotonic_ms();

}  // namespace tartan
