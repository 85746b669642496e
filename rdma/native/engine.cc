#include "engine.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "handshake.h"
#include "queue_pair.h"

namespace tartan {

namespace {
constexpr int READY_EVENTS = 64;
// Coding work between two turns of the network: about 50 µs, so that neither starves the other.
constexpr uint64_t ENCODE_BUDGET_BYTES = 1 << 20;
// Waking JavaScript costs both threads microseconds. While there is other work to do it sleeps on: until the oldest of
// its completions has waited about as long as two units take, or many wait.
constexpr int64_t WAKE_DELAY_NS = 100'000;
constexpr uint32_t WAKE_COMPLETIONS = 32;

int64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}
}  // namespace

std::unique_ptr<Engine> Engine::open(const WorkRequest* requests, uint32_t request_capacity, Completion* completions,
                                     uint32_t completion_capacity, std::function<void()> wake, std::string& why) {
  Descriptor epoll(epoll_create1(EPOLL_CLOEXEC));
  Descriptor doorbell(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!epoll || !doorbell) {
    why = strerror(errno);
    return nullptr;
  }
  std::unique_ptr<Engine> engine(new Engine(requests, request_capacity, completions, completion_capacity,
                                            std::move(wake), std::move(epoll), std::move(doorbell)));
  if (!engine->start(why)) return nullptr;
  return engine;
}

Engine::Engine(const WorkRequest* requests, uint32_t request_capacity, Completion* completions,
               uint32_t completion_capacity, std::function<void()> wake, Descriptor epoll, Descriptor doorbell)
    : submissions_(requests, request_capacity),
      completions_(completions, completion_capacity, counters),
      wake_(std::move(wake)),
      epoll_(std::move(epoll)),
      services_(completions_, events_, counters, next_qpn_, epoll_.get()),
      encodes_(services_),
      packets_(services_) {
  doorbell_.fd = std::move(doorbell);
}

// False and `why` when the kernel refuses.
bool Engine::start(std::string& why) {
  if (!services_.watch(doorbell_.fd, &doorbell_, EPOLLIN)) {
    why = strerror(errno);
    return false;
  }
  // Signals are for the threads that Node has set up for them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  try {
    thread_ = std::thread([this] { run(); });
    pthread_setname_np(thread_.native_handle(), "tartan-rdma");
  } catch (const std::system_error& error) {
    why = std::string("no thread can be started: ") + error.what();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread_.joinable();
}

Engine::~Engine() { close(); }

void Engine::close() {
  if (!thread_.joinable()) return;
  stopping_.store(true);
  kick();
  thread_.join();
  doorbell_.fd.reset();
  epoll_.reset();
}

uint32_t Engine::ring(uint32_t count) {
  counters.rings.add(1);
  if (count > 0) {
    submissions_.release(count);
    if (sleeping_.load(std::memory_order_seq_cst)) kick();
  }
  return submissions_.free_entries();
}

uint32_t Engine::poll() {
  bool wants_kick;
  const uint32_t count = completions_.poll(wants_kick);
  if (wants_kick) kick();
  return count;
}

void Engine::submit(Command command) {
  command.position = submissions_.tail();
  commands_.put(std::move(command));
  commands_submitted_.fetch_add(1, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst)) kick();
}

void Engine::kick() {
  const uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(doorbell_.fd.get(), &one, sizeof one);  // EAGAIN: it is ringing already
}

void Engine::Doorbell::on_ready(uint32_t) {
  uint64_t count;
  [[maybe_unused]] ssize_t got = read(fd.get(), &count, sizeof count);
}

// ---- engine thread ----

void Engine::run() {
  epoll_event ready[READY_EVENTS];
  while (!stopping_.load(std::memory_order_acquire)) {
    // Asleep is announced before looking once more at everything that rings the doorbell only for a sleeper.
    sleeping_.store(true, std::memory_order_seq_cst);
    const bool busy = submissions_.tail() != submissions_.head() ||
                      commands_submitted_.load(std::memory_order_seq_cst) != commands_taken_ ||
                      !services_.dirty.empty() || !encodes_.empty() || packets_.has_work() || completions_.can_move() ||
                      stopping_.load(std::memory_order_seq_cst);
    if (busy) sleeping_.store(false, std::memory_order_relaxed);
    const int count = wait(ready, busy);
    sleeping_.store(false, std::memory_order_relaxed);

    // Commands first: a peer may already use what JavaScript has just registered.
    take_submissions();
    for (int i = 0; i < count; i++) {
      Pollable* pollable = static_cast<Pollable*>(ready[i].data.ptr);
      if (!pollable->buried) pollable->on_ready(ready[i].events);
      publish();
    }
    run_timers();
    pump_dirty();
    packets_.pump();
    publish();
    if (!encodes_.empty()) {
      encodes_.run(ENCODE_BUDGET_BYTES);
      publish();
    }
    empty_graveyard();
  }
  tear_down();
}

// Waits for the network and the doorbell. JavaScript is woken when there is nothing else to do.
int Engine::wait(epoll_event* ready, bool busy) {
  publish();
  if (busy) return epoll_wait(epoll_.get(), ready, READY_EVENTS, 0);
  if (wake_due_ns_ != 0) {
    const int count = epoll_wait(epoll_.get(), ready, READY_EVENTS, 0);
    if (count != 0) return count;
    wake();
  }
  return epoll_wait(epoll_.get(), ready, READY_EVENTS, sleep_ms());
}

// Shows JavaScript what has completed, and wakes it when it is time.
void Engine::publish() {
  const uint32_t unseen = completions_.publish();
  if (unseen == 0) {
    wake_due_ns_ = 0;
    return;
  }
  const int64_t now = monotonic_ns();
  if (wake_due_ns_ == 0) wake_due_ns_ = now + WAKE_DELAY_NS;
  if (now >= wake_due_ns_ || unseen >= WAKE_COMPLETIONS) wake();
}

void Engine::wake() {
  wake_due_ns_ = 0;
  if (!completions_.disarm()) return;
  counters.wakeups.add(1);
  wake_();
}

// Requests and commands in the order in which JavaScript issued them.
void Engine::take_submissions() {
  // The tail first: whatever was commanded before a request below it has then been counted too.
  const uint32_t tail = submissions_.tail();
  const uint32_t commands = commands_submitted_.load(std::memory_order_seq_cst);
  uint32_t head = submissions_.head();
  const auto take_until = [&](uint32_t position) {
    counters.requests.add(position - head);
    while (head != position) execute(submissions_.at(head++));
    submissions_.advance(head);
  };
  for (Command command; commands_taken_ != commands && commands_.take(command); commands_taken_++) {
    if (static_cast<int32_t>(command.position - head) > 0) take_until(command.position);
    execute(command);
  }
  if (static_cast<int32_t>(tail - head) > 0) take_until(tail);
}

void Engine::execute(const WorkRequest& shared) {
  const WorkRequest request = shared;  // JavaScript could still write to its ring: judge and use the same bytes
  if (request.opcode == ENCODE || request.opcode == VERIFY) return encodes_.post(request);
  if (request.opcode >= SEND_STRIPE && request.opcode <= RELEASE_SLOT) return packets_.post(request);
  QueuePair* pair = services_.queue_pair(request.qpn);
  if (!pair) return services_.complete(request.opcode, FLUSHED, request.qpn, request.wr_id);
  switch (request.opcode) {
    case WRITE:
    case WRITE_WITH_IMM:
    case READ:
    case SEND:
      return pair->post_send(request);
    case RECV:
      return pair->post_recv(request);
    default:
      services_.complete(request.opcode, INVALID_REQUEST, request.qpn, request.wr_id);
  }
}

void Engine::execute(Command& command) {
  QueuePair* pair = services_.queue_pair(command.id);
  switch (command.type) {
    case CommandType::add_region:
      return services_.regions.add(command.region);
    case CommandType::grant_region:
      command.region->is_restricted = true;
      if (pair) {
        pair->granted_rkeys.push_back(command.region->rkey);
        command.region->granted.insert(pair->qpn);
      }
      return;
    case CommandType::deregister:
      return deregister(command.region);
    case CommandType::add_coder:
      return encodes_.add_coder(command.coder);
    case CommandType::remove_coder:
      return encodes_.remove_coder(command.id);
    case CommandType::add_coding_queue:
      return encodes_.add_queue(command.id);
    case CommandType::remove_coding_queue:
      encodes_.remove_queue(command.id);
      while (!encodes_.empty()) encodes_.run(ENCODE_BUDGET_BYTES);  // so that the fence comes after what it flushed
      return services_.emit({EventType::fence, command.number});
    case CommandType::listen:
      return start_listening(command);
    case CommandType::close_listener: {
      auto found = listeners_.find(command.id);
      if (found != listeners_.end()) {
        found->second->close_all();
        services_.bury(found->second);
        listeners_.erase(found);
      }
      return services_.emit({EventType::fence, command.number});
    }
    case CommandType::connect:
      return start_connecting(command);
    case CommandType::to_error:
      if (pair) pair->abandon(command.host);
      return;
    case CommandType::destroy_queue_pair:
      if (pair) pair->destroy();
      return;
    case CommandType::open_packet_socket:
    case CommandType::close_packet_socket:
    case CommandType::add_packet_sender:
    case CommandType::add_packet_receiver:
    case CommandType::remove_packet_receiver:
      return packets_.execute(command);
    case CommandType::fence:
      return services_.emit({EventType::fence, command.number});
  }
}

void Engine::start_listening(Command& command) {
  auto listener = std::make_unique<Listener>(services_, command.id);
  uint32_t port = command.port;
  std::string why;
  if (!listener->open(command.host, port, why))
    return services_.emit({EventType::listen_failed, command.id, 0, 0, 0, why});
  listeners_[command.id] = listener.release();
  services_.emit({EventType::listening, command.id, 0, port});
}

void Engine::start_connecting(Command& command) {
  Address address;
  if (!Address::parse(command.host, command.port, address)) {
    return services_.emit({EventType::connect_failed, command.id, 0, 0, 0, "it is no numeric address and port"});
  }
  (new Handshake(services_, command.id, address, command.mode, command.number))->begin();
}

void Engine::deregister(Region* region) {
  services_.regions.revoke(region);
  for (const auto& [qpn, pair] : services_.queue_pairs) pair->on_revoke(region);
  services_.hold(region);
  services_.release(region);  // reports region_gone now if nothing refers to it
}

QueuePair* Services::adopt(Descriptor fd, TransportKind transport, std::string remote) {
  const uint32_t qpn = next_qpn.fetch_add(1);
  auto pair = std::make_unique<QueuePair>(*this, qpn, std::move(fd), transport, std::move(remote));
  if (!pair->start()) return nullptr;
  queue_pairs.emplace(qpn, pair.get());
  return pair.release();
}

void Engine::pump_dirty() {
  // What is marked during this pass waits for the next turn.
  const size_t count = services_.dirty.size();
  for (size_t i = 0; i < count; i++) {
    QueuePair* pair = services_.dirty[i];
    pair->is_dirty = false;
    if (!pair->buried) pair->pump();
  }
  services_.dirty.erase(services_.dirty.begin(), services_.dirty.begin() + static_cast<std::ptrdiff_t>(count));
}

void Engine::run_timers() {
  if (services_.timers.empty()) return;
  const int64_t now = monotonic_ms();
  for (size_t i = 0; i < services_.timers.size(); i++) {
    Pollable* pollable = services_.timers[i];
    if (pollable->buried || pollable->deadline_ms == 0 || pollable->deadline_ms > now) continue;
    pollable->deadline_ms = 0;
    pollable->on_deadline();
  }
  std::erase_if(services_.timers, [](Pollable* pollable) {
    if (pollable->deadline_ms != 0 && !pollable->buried) return false;
    pollable->timed = false;
    return true;
  });
}

int Engine::sleep_ms() {
  int64_t first = 0;
  for (Pollable* pollable : services_.timers) {
    if (pollable->deadline_ms != 0 && (first == 0 || pollable->deadline_ms < first)) first = pollable->deadline_ms;
  }
  if (first == 0) return -1;
  const int64_t left = first - monotonic_ms() + 1;
  return left < 0 ? 0 : static_cast<int>(left);
}

void Engine::empty_graveyard() {
  if (services_.graveyard.empty()) return;
  std::erase_if(services_.timers, [](Pollable* pollable) { return pollable->buried; });
  std::erase_if(services_.dirty, [](QueuePair* pair) { return pair->buried; });
  for (Pollable* pollable : services_.graveyard) delete pollable;
  services_.graveyard.clear();
}

// JavaScript no longer listens: descriptors are closed and memory is let go, nothing is reported.
void Engine::tear_down() {
  for (auto& [id, listener] : listeners_) {
    listener->close_all();
    services_.bury(listener);
  }
  for (Pollable* pollable : services_.timers) {
    if (dynamic_cast<Handshake*>(pollable)) services_.bury(pollable);
  }
  for (const auto& [qpn, pair] : services_.queue_pairs) services_.bury(pair);
  packets_.close_all();
  empty_graveyard();
}

}  // namespace tartan
