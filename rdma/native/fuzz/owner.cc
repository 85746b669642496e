#include "owner.h"

#include <dirent.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "transcript.h"

extern "C" void __asan_poison_memory_region(void const volatile* at, size_t bytes) __attribute__((weak));
extern "C" void __asan_unpoison_memory_region(void const volatile* at, size_t bytes) __attribute__((weak));

namespace tartan::fuzz {

namespace {
size_t mapped_bytes(size_t bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}
uint8_t pattern(uint32_t salt, size_t at) { return static_cast<uint8_t>(salt * 37 + at + (at >> 8) * 11); }

int64_t cpu_ns(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}
}  // namespace

size_t open_descriptors() {
  size_t count = 0;
  DIR* folder = opendir("/proc/self/fd");
  while (folder && readdir(folder)) count++;
  if (folder) closedir(folder);
  return count;
}

Owner::Owner() : requests_(ENTRIES), completions_(ENTRIES), wake_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  std::string why;
  const int fd = wake_fd_;
  const auto wake = [fd] {
    const uint64_t one = 1;
    [[maybe_unused]] ssize_t written = write(fd, &one, sizeof one);
  };
  engine_ = Engine::open(requests_.data(), ENTRIES, completions_.data(), ENTRIES, wake, why);
  if (!engine_) fail("no engine: " + why);
}

Owner::~Owner() {
  engine_.reset();
  for (Memory& memory : memory_) delete memory.region;
  close(wake_fd_);
}

void Owner::allocate(uint32_t index, uint32_t bytes, uint32_t access) {
  index %= REGIONS;
  if (memory_[index].region) return;
  std::string why;
  const uint32_t lkey = lkey_of(index, generations_[index]++);
  Region* region = Region::allocate(bytes, access, lkey, rkey_of(lkey), why);
  if (!region) fail("no memory: " + why);
  memory_[index] = {region, false};
  fill(region, lkey);
  if (__asan_poison_memory_region)
    __asan_poison_memory_region(region->base + region->size, mapped_bytes(region->size) - region->size);
  Command command{CommandType::add_region};
  command.region = region;
  submit(std::move(command));
}

void Owner::fill(Region* region, uint32_t salt) {
  for (size_t i = 0; i < region->size; i++) region->base[i] = pattern(salt, i);
}

void Owner::check_source(Region* region) const {
  for (size_t i = 0; i < region->size; i++) {
    if (region->base[i] != pattern(region->lkey, i))
      fail("byte " + std::to_string(i) + " of memory that grants and receives nothing was changed");
  }
}

void Owner::deregister(uint32_t index) {
  index %= REGIONS;
  if (!is_usable(index)) return;
  memory_[index].leaving = true;
  Command command{CommandType::deregister};
  command.region = memory_[index].region;
  submit(std::move(command));
}

uint32_t Owner::listen() {
  if (listener_ != 0) return port_;
  Command command{CommandType::listen};
  command.id = listener_ = next_id_++;
  command.host = "127.0.0.1";
  port_ = 0;
  submit(std::move(command));
  wait_for([this] { return port_ != 0; }, "a listener");
  return port_;
}

void Owner::close_listener() {
  if (listener_ == 0) return;
  Command command{CommandType::close_listener};
  command.id = listener_;
  listener_ = 0;
  submit_and_wait(std::move(command), &Command::number);
}

void Owner::connect(uint32_t port, ConnectMode mode) {
  Command command{CommandType::connect};
  command.id = next_id_++;
  command.host = "127.0.0.1";
  command.port = port;
  command.number = 3'600'000;  // the peer's silence is ended by the case, not by the clock
  command.mode = mode;
  connecting_++;
  submit(std::move(command));
}

bool Owner::post(WorkRequest request) {
  Connection* connection = connection_of(request.qpn);
  if (connection && (connection->wants_destroy || connection->gone)) return false;
  const bool is_named = request.opcode == RELEASE_SLOT || request.opcode == CANCEL;
  if (!is_named) request.wr_id = next_wr_id_++;
  const bool is_recv = request.opcode == RECV;
  if (connection && is_recv) connection->recvs++;
  if (!is_named)
    outstanding_[request.wr_id] = {request.qpn, request.opcode, is_recv || (request.flags & SIGNALED) != 0};
  requests_[posted_++ % ENTRIES] = request;
  uint32_t room = engine_->ring(1);
  while (room == 0) {
    sync();
    room = engine_->ring(0);
  }
  return true;
}

void Owner::to_error(size_t connection) {
  if (connection >= connections.size() || connections[connection].gone) return;
  Command command{CommandType::to_error};
  command.id = connections[connection].qpn;
  command.host = "the case says so";
  submit(std::move(command));
}

void Owner::destroy(size_t connection) {
  if (connection >= connections.size() || connections[connection].wants_destroy) return;
  connections[connection].wants_destroy = true;
  Command command{CommandType::destroy_queue_pair};
  command.id = connections[connection].qpn;
  submit(std::move(command));
}

Owner::Connection* Owner::connection_of(uint32_t qpn) {
  for (Connection& connection : connections) {
    if (connection.qpn == qpn) return &connection;
  }
  return nullptr;
}

bool Owner::take() {
  const uint32_t count = engine_->poll();
  for (uint32_t i = 0; i < count; i++) {
    const Completion completion = completions_[seen_++ % ENTRIES];
    if (completion.opcode != OPCODE_EVENT) {
      on_completion(completion);
      continue;
    }
    Event event;
    if (!engine_->take_event(event)) fail("an event was announced that is not there");
    on_event(event);
  }
  return count > 0;
}

void Owner::on_completion(const Completion& completion) {
  tally.statuses[completion.status & 15]++;
  tally.opcodes[completion.opcode]++;
  if (receivers.count(completion.qpn)) {
    if (on_packet) on_packet(completion);
    return;
  }
  const auto found = outstanding_.find(completion.wr_id);
  if (found == outstanding_.end())
    fail("request " + std::to_string(completion.wr_id) + " completed that is not outstanding");
  const Outstanding request = found->second;
  last_status = completion.status;
  outstanding_.erase(found);
  if (request.qpn != completion.qpn) fail("a request completed on another queue pair than it was posted to");
  if (!request.is_signaled && completion.status == SUCCESS) fail("an unsignalled request completed with success");
  const uint8_t opcode = completion.opcode == RECV_WRITE_WITH_IMM ? uint8_t{RECV} : completion.opcode;
  if (opcode != request.opcode) fail("a request completed as another kind");
  Connection* connection = connection_of(completion.qpn);
  if (connection && connection->gone) fail("a request completed on a queue pair that is gone");
  if (request.opcode != RECV) return;
  if (connection) connection->recvs--;
  if (completion.status != SUCCESS) return;
  received.push_back(completion);
  if (received.size() > 64) received.erase(received.begin(), received.begin() + 32);
}

void Owner::on_event(const Event& event) {
  switch (event.type) {
    case EventType::listening:
      if (event.id == listener_) port_ = event.number;
      listening[event.id] = event.number;
      return;
    case EventType::listen_failed:
      if (event.id == listener_) fail("it cannot listen: " + event.text);
      listening[event.id] = 0;
      return;
    case EventType::connected:
    case EventType::accepted:
      if (event.type == EventType::connected) connecting_--;
      (event.type == EventType::connected ? tally.connected : tally.accepted)++;
      if (connection_of(event.qpn)) fail("two queue pairs of one number");
      connections.push_back({event.qpn, static_cast<TransportKind>(event.transport), false, false, false, 0});
      return;
    case EventType::connect_failed:
      connecting_--;
      tally.refused++;
      return;
    case EventType::queue_pair_error: {
      Connection* connection = connection_of(event.qpn);
      if (!connection || connection->gone) fail("a queue pair failed that is not there");
      if (connection->failed) fail("a queue pair failed twice");
      connection->failed = true;
      tally.failed++;
      return;
    }
    case EventType::queue_pair_gone: {
      Connection* connection = connection_of(event.qpn);
      if (!connection || connection->gone) fail("a queue pair is gone that was not there");
      if (!connection->wants_destroy) fail("a queue pair is gone that nobody destroyed");
      connection->gone = true;
      for (auto it = outstanding_.begin(); it != outstanding_.end();) {
        if (it->second.qpn != event.qpn) {
          ++it;
          continue;
        }
        if (it->second.is_signaled) fail("a request never completed, and its queue pair is gone");
        it = outstanding_.erase(it);
      }
      return;
    }
    case EventType::region_gone:
      for (uint32_t index = 0; index < REGIONS; index++) {
        Memory& memory = memory_[index];
        if (!memory.region || memory.region->lkey != event.id) continue;
        if (!memory.leaving) fail("a region is gone that nobody deregistered");
        if (index == SOURCE) check_source(memory.region);
        if (__asan_unpoison_memory_region)
          __asan_unpoison_memory_region(memory.region->base, mapped_bytes(memory.region->size));
        delete memory.region;
        memory = {};
        return;
      }
      fail("a region is gone that is not there");
    case EventType::fence:
      fences_[event.id] = true;
      return;
  }
}

void Owner::sync() { submit_and_wait(Command{CommandType::fence}, &Command::number); }

void Owner::submit_and_wait(Command command, uint32_t Command::*field) {
  const uint32_t fence = command.*field = next_id_++;
  fences_[fence] = false;
  submit(std::move(command));
  wait_for([&] { return fences_[fence]; }, "a fence");
  fences_.erase(fence);
}

void Owner::wait_for(const std::function<bool()>& condition, const char*) {
  while (!condition()) {
    if (!take()) wait_some();
  }
}

// Sleeps as JavaScript does: arms, looks once more, waits for the engine's call.
void Owner::wait_some() {
  engine_->arm();
  if (take()) return;
  pollfd wake{wake_fd_, POLLIN, 0};
  ::poll(&wake, 1, 5);  // not for ever: conditions may look at sockets, too
  uint64_t count;
  [[maybe_unused]] ssize_t got = read(wake_fd_, &count, sizeof count);
}

void Owner::expect_calm() {
  sync();
  int windows = 0;
  for (; windows < 12; windows++) {
    const int64_t wall = cpu_ns(CLOCK_MONOTONIC);
    const int64_t others = cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_ns(CLOCK_THREAD_CPUTIME_ID);
    const timespec rest{0, 5'000'000};
    nanosleep(&rest, nullptr);
    take();
    const int64_t used = cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_ns(CLOCK_THREAD_CPUTIME_ID) - others;
    if (used < (cpu_ns(CLOCK_MONOTONIC) - wall) / 2) return;
  }
  fail("the engine's thread is busy though nothing happens");
}

void Owner::finish() {
  close_listener();
  for (size_t i = 0; i < connections.size(); i++) destroy(i);
  wait_for(
      [this] {
        for (size_t i = 0; i < connections.size(); i++) {
          destroy(i);
          if (!connections[i].gone) return false;
        }
        return connecting_ == 0;
      },
      "queue pairs to be gone");
  for (uint32_t i = 0; i < REGIONS; i++) deregister(i);
  wait_for(
      [this] {
        for (const Memory& memory : memory_) {
          if (memory.region) return false;
        }
        return true;
      },
      "regions to be gone");
  sync();
  engine_->close();
}

}  // namespace tartan::fuzz
