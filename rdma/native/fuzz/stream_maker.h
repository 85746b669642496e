// Makes up cases for a StreamWorld: connections whose peers speak the protocol well enough to get deep into it, and
// then bend a field, cut a frame short, go deaf, vanish, or write where they were let in.
#pragma once
#include <string>
#include <vector>

#include "random.h"
#include "stream_world.h"

namespace tartan::fuzz {

class StreamMaker {
 public:
  StreamMaker(StreamWorld& world, Random& random) : world_(world), random_(random) {}
  void play();

 private:
  // What a peer has said so far.
  struct Speaker {
    bool is_dialled = false;
    uint32_t preamble = 0;  // bytes of it said
    uint32_t requests = 0, acked = 0, recvs = 0;
    uint32_t reads_answered = 0, read_placed = 0, maps_answered = 0;
  };
  struct Target {
    uint32_t rkey, offset, length;
  };

  void step();
  void chores();
  void connect(uint32_t peer);
  void speak(uint32_t peer);
  void say_preamble(uint32_t peer);
  std::vector<uint8_t> frame(uint32_t peer, std::string& pass);
  void bend(FrameHeader& header);
  void emit(uint32_t peer, const std::vector<uint8_t>& bytes);
  Target target(uint32_t access, uint32_t most);
  uint32_t length_within(uint32_t size);
  void post_send(uint32_t connection);
  void post_recv(uint32_t connection);
  std::vector<uint8_t> noise(uint32_t bytes);

  StreamWorld& world_;
  Random& random_;
  Speaker speakers_[StreamWorld::PEERS];
  size_t greeted_ = 0;          // connections whose owner has posted its first requests
  uint32_t recklessness_ = 50;  // of 1000 frames, how many are bent
};

}  // namespace tartan::fuzz
