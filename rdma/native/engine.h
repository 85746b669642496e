// The software device: one thread that owns every stream, queue pair and coding request, between two rings.
//
// Threads: open() and close(), and the section "JavaScript thread", belong to the JavaScript thread that opened the
// device; everything private runs on the engine thread. They share only the rings, the mailboxes and the atomics here.
// Lifetime: the rings' memory and `wake` must outlive close(), which joins the thread. Regions and coders handed over
// in commands are the engine's; regions come back by region_gone events or, after close(), are what JavaScript still
// lists.
#pragma once
#include <sys/epoll.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>

#include "completion_queue.h"
#include "encode_queue.h"
#include "listener.h"
#include "mailbox.h"
#include "packet_sockets.h"
#include "pollable.h"
#include "services.h"
#include "submission_queue.h"

namespace tartan {

class Engine {
 public:
  // Returns nullptr and sets `why` when the kernel refuses a descriptor. `wake` is called on the engine thread.
  static std::unique_ptr<Engine> open(const WorkRequest* requests, uint32_t request_capacity, Completion* completions,
                                      uint32_t completion_capacity, std::function<void()> wake, std::string& why);
  ~Engine();
  void close();

  // JavaScript thread.
  uint32_t ring(uint32_t count);  // returns the free entries of the send queue
  uint32_t poll();
  void arm() { completions_.arm(); }
  void submit(Command command);
  bool take_event(Event& event) { return events_.take(event); }
  uint32_t new_qpn() { return next_qpn_.fetch_add(1); }

  Counters counters;

 private:
  // The eventfd by which JavaScript wakes a sleeping engine.
  struct Doorbell : Pollable {
    void on_ready(uint32_t) override;
    Descriptor fd;
  };

  Engine(const WorkRequest* requests, uint32_t request_capacity, Completion* completions, uint32_t completion_capacity,
         std::function<void()> wake, Descriptor epoll, Descriptor doorbell);
  bool start(std::string& why);
  void run();
  void kick();
  void take_submissions();
  void execute(const WorkRequest& request);
  void execute(Command& command);
  void start_listening(Command& command);
  void start_connecting(Command& command);
  void deregister(Region* region);
  void pump_dirty();
  void run_timers();
  int sleep_ms();
  void publish();
  void wake();
  int wait(epoll_event* ready, bool busy);
  void empty_graveyard();
  void tear_down();

  SubmissionQueue submissions_;
  CompletionQueue completions_;
  Mailbox<Command> commands_;
  Mailbox<Event> events_;
  std::function<void()> wake_;
  std::atomic<uint32_t> next_qpn_{1};
  Descriptor epoll_;  // after the doorbell is gone: it is registered there
  Doorbell doorbell_;
  Services services_;
  EncodeQueue encodes_;
  PacketSockets packets_;
  std::unordered_map<uint32_t, Listener*> listeners_;
  std::atomic<uint32_t> commands_submitted_{0};
  uint32_t commands_taken_ = 0;
  int64_t wake_due_ns_ = 0;  // when JavaScript is to be woken; 0: it need not be
  std::atomic<bool> sleeping_{false};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace tartan
