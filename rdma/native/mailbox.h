// What is too rare or too large for the rings: commands from JavaScript to the engine and events back.
//
// Threads: both ends are locked; no lock is held while anything else happens. An event is announced by a completion
// with OPCODE_EVENT, so that it keeps its place among the completions; JavaScript takes one event for each.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

namespace tartan {

class Region;
struct Coder;
struct PacketCounters;

enum class CommandType : uint8_t {
  add_region,              // region
  deregister,              // region
  grant_region,            // region, id: the qpn that may reach it
  add_coder,               // coder
  remove_coder,            // id
  add_coding_queue,        // id: its qpn
  remove_coding_queue,     // id: its qpn → event fence
  listen,                  // id, host, port → listening or listen_failed
  close_listener,          // id → fence
  connect,                 // id, host, port, number: timeout in ms, mode → connected or connect_failed
  to_error,                // id: the qpn, host: the reason
  destroy_queue_pair,      // id: the qpn → queue_pair_gone
  fence,                   // id → fence
  open_packet_socket,      // id, host, port, words: impairment, packet_counters → listening or listen_failed
  close_packet_socket,     // id, number: fence → fence
  add_packet_sender,       // id: the socket, number: qpn, words: most packets
  add_packet_receiver,     // id: the socket, number: qpn, words: ReceiverOptions, lkey
  remove_packet_receiver,  // id: the socket, port: its qpn, number: fence → fence
};

enum class ConnectMode : uint8_t { automatic, tcp, shm };

struct Command {
  CommandType type;
  uint32_t id = 0;
  uint32_t port = 0;
  uint32_t number = 0;
  ConnectMode mode = ConnectMode::automatic;
  Region* region = nullptr;
  Coder* coder = nullptr;
  std::string host;
  uint32_t words[12] = {};
  std::shared_ptr<PacketCounters> packet_counters;
  uint32_t position = 0;  // the send queue's tail at submission: everything posted before runs before
};

enum class EventType : uint8_t {
  listening = 1,         // id, number: port
  listen_failed = 2,     // id, text
  connected = 3,         // id, qpn, transport, text: the remote address
  connect_failed = 4,    // id, text
  accepted = 5,          // id: the listener, qpn, transport, text: the remote address
  queue_pair_error = 6,  // qpn, text: the reason
  queue_pair_gone = 7,   // qpn
  region_gone = 8,       // id: the lkey
  fence = 9,             // id
};

struct Event {
  EventType type;
  uint32_t id = 0;
  uint32_t qpn = 0;
  uint32_t number = 0;
  uint8_t transport = 0;
  std::string text;
};

template <class T>
class Mailbox {
 public:
  void put(T item) {
    std::lock_guard<std::mutex> lock(mutex_);
    items_.push_back(std::move(item));
  }
  bool take(T& item) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (items_.empty()) return false;
    item = std::move(items_.front());
    items_.pop_front();
    return true;
  }

 private:
  std::mutex mutex_;
  std::deque<T> items_;
};

}  // namespace tartan
