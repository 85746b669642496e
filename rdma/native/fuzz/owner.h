// The side that JavaScript has in the real thing: opens an engine, posts requests, takes completions and events, and
// checks that the engine keeps its word whatever the peers do:
//
//   - every request completes at most once, and by the time its queue pair is gone exactly once (unsignalled ones that
//     succeed: never)
//   - nothing completes or fails on a queue pair that is gone
//   - memory outside a region's size is not touched (poisoned for AddressSanitizer), and a region that grants nothing
//     and receives nothing keeps its bytes
//   - a region is gone once nothing refers to it; the engine answers fences; no descriptor is left at the end
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../engine.h"

namespace tartan::fuzz {

class Owner {
 public:
  static constexpr uint32_t REGIONS = 7;
  static constexpr uint32_t SOURCE = 2;  // grants nothing, receives nothing: keeps its bytes
  static constexpr uint32_t HONEST = 6;  // no case touches it

  struct Connection {
    uint32_t qpn = 0;
    TransportKind transport = TransportKind::tcp;
    bool failed = false, wants_destroy = false, gone = false;
    uint32_t recvs = 0;  // outstanding
  };
  struct Memory {
    Region* region = nullptr;
    bool leaving = false;
  };
  struct Tally {
    uint64_t statuses[16] = {};  // completions by status
    uint64_t opcodes[256] = {};
    uint64_t accepted = 0, connected = 0, refused = 0, failed = 0;
  };

  Owner();
  ~Owner();

  // A new region takes the place of one that is gone, with new keys.
  void allocate(uint32_t index, uint32_t bytes, uint32_t access);
  void deregister(uint32_t index);
  Region* region(uint32_t index) const { return memory_[index % REGIONS].region; }
  bool is_usable(uint32_t index) const { return region(index) && !memory_[index % REGIONS].leaving; }
  // Keys are told by the region's place and how often it has been filled, so that a transcript stays true.
  static uint32_t lkey_of(uint32_t index, uint32_t generation) { return 1 + index + generation * REGIONS; }
  static uint32_t rkey_of(uint32_t lkey) { return 0x51a7'0000 + lkey * 0x101; }

  uint32_t listen();  // returns the port; closes the listener that there was
  void close_listener();
  void connect(uint32_t port, ConnectMode mode);

  // Fills in wr_id (but where it names a slot or another request); false when there is no such queue pair (any more) to
  // post to.
  bool post(WorkRequest request);
  uint32_t last_wr_id() const { return next_wr_id_ - 1; }
  size_t outstanding() const { return outstanding_.size(); }
  void to_error(size_t connection);
  void destroy(size_t connection);
  void submit(Command command) { engine_->submit(std::move(command)); }
  // The same, and waits for the fence that the command is answered with; `fence` is its field for the fence's number.
  void submit_and_wait(Command command, uint32_t Command::*fence);
  uint32_t new_qpn() { return engine_->new_qpn(); }

  // Takes what has completed; true when there was something.
  bool take();
  // The engine has done all that was submitted before, and everything that it completed has been taken.
  void sync();
  // Waits until the condition holds; the watchdog ends a wait that never does. `fd` ≥ 0: also looks when it is
  // readable.
  void wait_for(const std::function<bool()>& condition, const char* what);
  // Fails when the engine's thread keeps a core busy though nothing happens.
  void expect_calm();
  // Destroys and deregisters everything, checks what is left, closes the engine.
  void finish();

  std::vector<Connection> connections;               // in the order in which they came up
  std::function<void(const Completion&)> on_packet;  // completions of packet receivers
  std::map<uint32_t, bool> receivers;                // packet receivers' queue pair numbers
  std::map<uint32_t, uint32_t> listening;            // packet sockets: id → port, 0: failed
  Tally tally;
  uint8_t last_status = SUCCESS;  // of a request
  Counters& counters() { return engine_->counters; }
  std::vector<Completion> received;  // receives that succeeded, the last few

 private:
  struct Outstanding {
    uint32_t qpn;
    uint8_t opcode;
    bool is_signaled;
  };
  void on_completion(const Completion& completion);
  void on_event(const Event& event);
  Connection* connection_of(uint32_t qpn);
  void fill(Region* region, uint32_t salt);
  void check_source(Region* region) const;
  void wait_some();

  static constexpr uint32_t ENTRIES = 256;
  std::vector<WorkRequest> requests_;
  std::vector<Completion> completions_;
  uint32_t posted_ = 0, seen_ = 0;
  int wake_fd_ = -1;
  std::unique_ptr<Engine> engine_;
  Memory memory_[REGIONS];
  uint32_t generations_[REGIONS] = {};
  std::map<uint32_t, Outstanding> outstanding_;  // by wr_id
  uint32_t next_wr_id_ = 1;
  uint32_t listener_ = 0, next_id_ = 1, port_ = 0;
  std::map<uint32_t, bool> fences_;
  size_t connecting_ = 0;

 public:
  bool is_connecting() const { return connecting_ > 0; }
};

// Open descriptors of this process.
size_t open_descriptors();

}  // namespace tartan::fuzz
