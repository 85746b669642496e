#include "packet_maker.h"

#include <algorithm>
#include <cstring>

namespace tartan::fuzz {

using packet::UnitView;

void PacketMaker::play() {
  recklessness_ = random_.pick({0u, 20u, 100u, 400u});
  for (uint32_t socket = 0; socket < PacketWorld::SOCKETS; socket++) {
    if (random_.chance(socket == 0 ? 50 : 600)) continue;
    world_.run(
        say("open", socket, random_.chance(300) ? random_.below(1000) : 0, random_.below(200), random_.below(300)));
    if (random_.chance(800)) world_.run(say("sender", socket, 2 + random_.below(64)));
  }
  const uint32_t steps = 20 + random_.below(200);
  for (uint32_t i = 0; i < steps; i++) step();
  world_.run("sync");
}

void PacketMaker::step() {
  const uint32_t socket = random_.chance(800) ? 0 : 1;
  const uint32_t region = random_.pick({0u, 1u, 3u, 4u, 5u});
  const uint32_t what = random_.below(1000);
  if (what < 40 || world_.receivers().empty()) {
    const uint64_t file = random_.chance(500) ? 1 + random_.below(3) : random_.next();
    const uint32_t into = random_.pick({4u, 5u});  // not where the owner itself writes
    return world_.run(say("receiver", socket, random_.below(PacketWorld::PEERS), into, file, random_.below(4),
                          random_.below(8), random_.below(6)));
  }
  if (what < 140) return begin_unit(random_.below(world_.receivers().size()));
  if (what < 500) return say_chunk();
  if (what < 640) return say_ack();
  if (what < 660) return say_noise();
  if (what < 720) return post_unit();
  if (what < 760) return post_stripe();
  if (what < 840) return release();
  if (what < 940) return world_.run("sync");
  if (what < 955) return world_.run(say("cancel", socket, random_.below(6)));
  if (what < 962) return world_.run(say("remove", random_.below(world_.receivers().size())));
  if (what < 968) return world_.run(say("dereg", region));
  if (what < 980) return world_.run(say("alloc", region, 64 + random_.below(1 << 18), 0));
  if (what < 985) return world_.run(say("shut", socket));
  if (what < 988) return world_.run("calm");
  world_.run(say("open", socket, 0, 0, 0));
  world_.run(say("sender", socket, 1 + random_.below(100)));
}

PacketMaker::Shape PacketMaker::shape(uint32_t most_shift) {
  Shape shape{};
  shape.k = 1 + random_.below(random_.chance(200) ? packet::MAX_K : 3);
  shape.m = 1 + random_.below(2);
  shape.shift = 9 + random_.below(std::min(most_shift, 14u) - 8);
  shape.unit = random_.below(shape.k + shape.m);
  const uint32_t unit_bytes = 1u << shape.shift;
  shape.stripe_length = random_.pick({1u, unit_bytes, shape.k * unit_bytes, 1 + random_.below(shape.k * unit_bytes)});
  return shape;
}

uint32_t PacketMaker::unit_length(const Shape& shape) {
  const uint32_t unit_bytes = 1u << shape.shift, before = shape.unit < shape.k ? shape.unit * unit_bytes : 0;
  return shape.stripe_length > before ? std::min(unit_bytes, shape.stripe_length - before) : 0;
}

std::vector<uint8_t> PacketMaker::header(const Shape& shape, uint64_t file, uint32_t writer_epoch) {
  const bool is_parity = shape.unit >= shape.k;
  std::vector<uint8_t> bytes(packet::DATA_HEADER_BYTES + (is_parity ? 4 * shape.k : 0));
  store32(bytes.data(), packet::UNIT_MAGIC);
  const uint8_t fields[] = {packet::UNIT_VERSION,
                            1,
                            static_cast<uint8_t>(shape.k),
                            static_cast<uint8_t>(shape.m),
                            static_cast<uint8_t>(shape.unit),
                            static_cast<uint8_t>(shape.shift),
                            0,
                            static_cast<uint8_t>((bytes.size() - 64) / 4)};
  memcpy(bytes.data() + 4, fields, sizeof fields);
  packet::store64(bytes.data() + 16, file);
  packet::store64(bytes.data() + 24, random_.below(6));
  store32(bytes.data() + 32, unit_length(shape));
  store32(bytes.data() + 36, shape.stripe_length);
  store32(bytes.data() + 40, random_.below(3));
  store32(bytes.data() + 44, writer_epoch);
  store32(bytes.data() + 48, random_.below(3));
  return bytes;
}

void PacketMaker::begin_unit(size_t index) {
  const PacketWorld::Receiver& receiver = world_.receivers()[index];
  uint32_t shift = 9;
  while (1u << shift < receiver.unit_bytes) shift++;
  const Shape it = shape(random_.chance(recklessness_ / 4) ? 14 : shift);
  Outgoing unit{index, packet::UNIT, 0, 0, header(it, receiver.file, receiver.writer_epoch), {}};
  unit.payload = noise(unit_length(it));
  const auto length = static_cast<uint32_t>(unit.payload.size());
  unit.chunk = random_.chance(300) ? std::max(length, 4u) : 64 + 4 * random_.below(300);
  unit.chunks = std::max(1u, (length + unit.chunk - 1) / unit.chunk);
  if (it.unit >= it.k && random_.chance(700)) {  // as the switch sends it
    unit.type = packet::PARITY;
    Digest digest;
    coding_digest(unit.payload.data(), length, &digest);
    memcpy(unit.header.data() + packet::DIGESTS.summary_offset, digest.summary, 16);
    store32(unit.header.data() + packet::DIGESTS.seal_offset,
            packet::stripe_seal(unit.header.data(), unit.header.data() + packet::DIGESTS.crc_list_offset, it.k));
  }
  outgoing_.push_back(std::move(unit));
  if (outgoing_.size() > 12) outgoing_.erase(outgoing_.begin() + random_.below(outgoing_.size()));
  // Some come whole at once.
  for (uint32_t i = random_.chance(500) ? outgoing_.back().chunks : 0; i > 0; i--) say_chunk();
}

void PacketMaker::say_chunk() {
  if (outgoing_.empty()) return;
  const Outgoing& unit = random_.chance(500) ? outgoing_.back() : outgoing_[random_.below(outgoing_.size())];
  const PacketWorld::Receiver& receiver = world_.receivers()[unit.receiver];
  uint32_t offset = unit.chunk * random_.below(unit.chunks + (random_.chance(50) ? 2 : 0));
  uint32_t chunk = unit.chunk;
  if (random_.chance(recklessness_ / 4)) chunk = random_.below(1500);
  if (random_.chance(recklessness_ / 4)) offset = random_.bent(offset);
  std::vector<uint8_t> packet = unit_packet(unit.type, unit.header, offset, chunk, unit.payload);
  if (random_.chance(recklessness_)) bend(packet);
  world_.run(say("say", random_.chance(recklessness_ / 4) ? random_.below(4) : receiver.peer, receiver.socket,
                 hex(packet.data(), packet.size())));
}

void PacketMaker::say_ack() {
  if (world_.heard.empty()) return;
  const PacketWorld::Heard first =
      world_.heard[world_.heard.size() - 1 - random_.below(std::min<size_t>(world_.heard.size(), 8))];
  uint32_t count = 1 + random_.below(4);
  std::vector<uint8_t> packet(packet::HEADER_BYTES + packet::ACK_PREFIX_BYTES + count * packet::ACK_ENTRY_BYTES);
  uint8_t* at = packet.data() + packet::HEADER_BYTES;
  packet::store64(at, first.file);
  store32(at + 8, first.writer_epoch);
  at += packet::ACK_PREFIX_BYTES;
  for (uint32_t i = 0; i < count; i++, at += packet::ACK_ENTRY_BYTES) {
    const PacketWorld::Heard& about = world_.heard[world_.heard.size() - 1 - random_.below(world_.heard.size())];
    packet::store64(at, about.stripe);
    store32(at + 8, about.counter);
    store32(at + 12, about.map_epoch);
    at[16] = static_cast<uint8_t>(about.type == packet::STRIPE ? random_.below(about.k + about.m) : about.unit);
    at[17] = random_.chance(300);
    at[18] = static_cast<uint8_t>(about.chunk);
    at[19] = static_cast<uint8_t>(about.chunk >> 8);
    store32(at + 20, about.offset / std::max(1u, about.chunk) + random_.below(2));
    for (uint32_t byte = 24; byte < 40; byte++)
      at[byte] = random_.chance(300) ? static_cast<uint8_t>(random_.next()) : 0;
    if (random_.chance(recklessness_ / 2)) store32(at + 4 * random_.below(10), random_.bent(load32(at + 20)));
  }
  if (random_.chance(recklessness_ / 4)) count = random_.below(40);
  packet::put_header(packet.data(), packet::ACK, 0, 0, 0, 0, 0, count);
  packet::store16_be(packet.data() + 22, packet::fold(packet::sum16(packet.data(), packet::HEADER_BYTES)));
  if (random_.chance(recklessness_)) bend(packet);
  world_.run(say("say", random_.below(PacketWorld::PEERS), first.socket, hex(packet.data(), packet.size())));
}

void PacketMaker::say_noise() {
  std::vector<uint8_t> packet = noise(random_.chance(300) ? random_.below(30) : random_.below(3000));
  if (packet.size() >= packet::HEADER_BYTES && random_.chance(700)) {
    packet::store32_be(packet.data(), packet::MAGIC);
    packet[4] = packet::VERSION;
    packet[5] = static_cast<uint8_t>(random_.below(8));
  }
  world_.run(say("say", random_.below(PacketWorld::PEERS), random_.below(PacketWorld::SOCKETS),
                 hex(packet.data(), packet.size())));
}

void PacketMaker::bend(std::vector<uint8_t>& packet) {
  if (packet.empty()) return;
  for (uint32_t i = 1 + random_.below(3); i > 0; i--) {
    const auto within = static_cast<uint32_t>(packet.size());
    packet[random_.below(random_.chance(800) ? std::min(within, 140u) : within)] ^=
        static_cast<uint8_t>(random_.chance(500) ? 1 << random_.below(8) : random_.below(256));
  }
  if (random_.chance(100)) packet.resize(random_.below(packet.size() + 200));
  const uint32_t checked =
      packet::HEADER_BYTES + (packet.size() > 5 && packet[5] == packet::ACK ? 0 : packet::DATA_HEADER_BYTES);
  if (packet.size() < checked || random_.chance(200)) return;
  packet::store16_be(packet.data() + 22, 0);
  packet::store16_be(packet.data() + 22, packet::fold(packet::sum16(packet.data(), checked)));
}

void PacketMaker::post_unit() {
  const Shape it = shape(14);
  std::vector<uint8_t> head = header(it, 1 + random_.below(3), 1);
  if (random_.chance(recklessness_ / 4))
    head[random_.below(head.size())] ^= static_cast<uint8_t>(1 << random_.below(8));
  const uint32_t region = random_.pick({0u, 1u, 3u}), at = 4 * random_.below(1000);
  world_.run(say("memory", region, at, hex(head.data(), head.size())));
  uint32_t payload = 8192 + random_.below(4096), bytes = unit_length(it), most = 64 + 4 * random_.below(2000);
  if (random_.chance(recklessness_ / 4)) payload = random_.bent(payload);
  if (random_.chance(recklessness_ / 4)) bytes = random_.bent(bytes);
  if (random_.chance(recklessness_ / 4)) most = random_.bent(most);
  world_.run(say("unit", random_.chance(900) ? 0 : 1, region, at, head.size(), payload, bytes, most,
                 random_.below(PacketWorld::PEERS)));
}

void PacketMaker::post_stripe() {
  Shape it = shape(13);
  const uint32_t region = random_.pick({0u, 1u, 3u}), at = 4 * random_.below(1000);
  std::vector<uint8_t> heads;
  it.unit = 0;
  const std::vector<uint8_t> first = header(it, 1 + random_.below(3), 1);
  for (it.unit = 0; it.unit < packet::MAX_K; it.unit++) {
    std::vector<uint8_t> head = first;
    head[8] = static_cast<uint8_t>(it.unit);
    store32(head.data() + 32, it.unit < it.k ? unit_length(it) : 0);
    heads.insert(heads.end(), head.begin(), head.end());
  }
  if (random_.chance(recklessness_ / 4))
    heads[random_.below(heads.size())] ^= static_cast<uint8_t>(1 << random_.below(8));
  world_.run(say("memory", region, at, hex(heads.data(), heads.size())));
  uint32_t units = 8192, stride = 1u << it.shift, chunk = 64 + 4 * random_.below(400);
  if (random_.chance(recklessness_ / 4)) units = random_.bent(units);
  if (random_.chance(recklessness_ / 4)) stride = random_.bent(stride);
  if (random_.chance(recklessness_ / 4)) chunk = random_.bent(chunk);
  const uint32_t mask = random_.chance(900) ? (1u << (it.k + it.m)) - 1 : static_cast<uint32_t>(random_.next());
  world_.run(say("stripe", random_.chance(900) ? 0 : 1, region, at, units, stride, random_.below(9), chunk, mask,
                 random_.below(PacketWorld::PEERS)));
}

void PacketMaker::release() {
  const auto& receivers = world_.receivers();
  const uint32_t index = random_.below(receivers.size());
  const PacketWorld::Receiver& receiver = receivers[index];
  const uint32_t slot = receiver.whole.empty() || random_.chance(recklessness_ / 8)
                            ? random_.below(receiver.slots + 2)
                            : receiver.whole[random_.below(receiver.whole.size())];
  world_.run(say("release", index, slot, random_.below(2)));
}

std::vector<uint8_t> PacketMaker::noise(uint32_t bytes) {
  std::vector<uint8_t> filling(bytes);
  const uint64_t value = random_.next();
  for (uint32_t i = 0; i < bytes; i++) filling[i] = static_cast<uint8_t>(value >> i % 8 * 8);
  return filling;
}

}  // namespace tartan::fuzz
