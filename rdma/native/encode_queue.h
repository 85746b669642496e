// Coding requests: queued in the order of posting, executed one by one on the engine thread between turns of the
// network. Engine thread only. The region and the coder of a request are held from post() until its completion is
// pushed.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "coder.h"
#include "growable_ring.h"
#include "services.h"

namespace tartan {

class EncodeQueue {
 public:
  explicit EncodeQueue(Services& services) : services_(services), requests_(256, services.counters.allocations) {}
  ~EncodeQueue();

  void add_coder(Coder* coder) { coders_[coder->id] = coder; }
  void remove_coder(uint32_t id);
  void add_queue(uint32_t qpn);
  void remove_queue(uint32_t qpn);  // flushes what it has outstanding

  void post(const WorkRequest& request);
  bool empty() const { return requests_.empty(); }
  // Executes requests until about `budget` bytes were read, at least one.
  void run(uint64_t budget);

 private:
  struct Request {
    WorkRequest wr;
    Coder* coder;
    Region* region;
    bool flushed;
  };
  struct Outcome {
    uint8_t status;
    uint32_t detail = 0;
  };

  Outcome encode(const Request& request, uint64_t& bytes);
  Outcome verify(const Request& request, uint64_t& bytes);
  void finish(Request& request, Outcome outcome);

  Services& services_;
  GrowableRing<Request> requests_;
  std::unordered_map<uint32_t, Coder*> coders_;
  std::vector<uint32_t> queues_;
};

}  // namespace tartan
