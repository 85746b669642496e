// Makes up cases for a PacketWorld: units and stripes under way in both directions, chunks that come in any order,
// twice, cut short or bent, acknowledgements that lie, and sockets, receivers and memory that go away amid it.
#pragma once
#include <vector>

#include "packet_world.h"
#include "random.h"

namespace tartan::fuzz {

class PacketMaker {
 public:
  PacketMaker(PacketWorld& world, Random& random) : world_(world), random_(random) {}
  void play();

 private:
  // A unit that a peer sends to a receiver.
  struct Outgoing {
    size_t receiver;
    packet::Type type;
    uint32_t chunk, chunks;
    std::vector<uint8_t> header, payload;
  };
  struct Shape {
    uint32_t k, m, unit, shift, stripe_length;
  };

  void step();
  void begin_unit(size_t receiver);
  void say_chunk();
  void say_ack();
  void say_noise();
  void post_unit();
  void post_stripe();
  void release();
  Shape shape(uint32_t most_shift);
  std::vector<uint8_t> header(const Shape& shape, uint64_t file, uint32_t writer_epoch);
  static uint32_t unit_length(const Shape& shape);
  std::vector<uint8_t> noise(uint32_t bytes);
  // Some bytes changed; with `is_mended` the checksum is made to fit, as a sender gone wrong would.
  void bend(std::vector<uint8_t>& packet);

  PacketWorld& world_;
  Random& random_;
  uint32_t recklessness_ = 0;
  std::vector<Outgoing> outgoing_;
};

}  // namespace tartan::fuzz
