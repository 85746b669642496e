#include "stream_maker.h"

#include <cstring>

namespace tartan::fuzz {

namespace {
// Where the owner's requests find their memory, by region.
constexpr uint32_t RECEIVES = 3, ANSWERS = 4;

bool has_payload(uint8_t type) {
  return type == FRAME_WRITE || type == FRAME_WRITE_IMM || type == FRAME_SEND || type == FRAME_READ_DATA;
}

void append(std::vector<uint8_t>& bytes, const void* from, size_t count) {
  const auto* at = static_cast<const uint8_t*>(from);
  bytes.insert(bytes.end(), at, at + count);
}
}  // namespace

void StreamMaker::play() {
  recklessness_ = random_.pick({0u, 10u, 50u, 300u});
  const uint32_t steps = 10 + random_.below(120);
  for (uint32_t i = 0; i < steps; i++) {
    step();
    chores();
  }
  world_.run("sync");
}

void StreamMaker::step() {
  const uint32_t peers = 1 + random_.below(StreamWorld::PEERS);  // the first few are busiest
  const uint32_t peer = random_.below(peers);
  const auto connections = static_cast<uint32_t>(world_.owner().connections.size());
  const uint32_t connection = connections > 0 ? connections - 1 - random_.below(std::min(connections, 4u)) : 0;
  const uint32_t region = random_.below(Owner::HONEST);
  const uint32_t what = random_.below(1000);
  if (what < 600) return speak(peer);
  if (what < 720) return post_send(connection);
  if (what < 800) return post_recv(connection);
  if (what < 860) return world_.run("sync");
  if (what < 880)
    return world_.run(say("scribble", region, random_.below(70000), random_.below(5000), random_.below(256)));
  if (what < 900) return world_.run(say("deaf", peer, random_.below(2)));
  if (what < 910) return world_.run(say("shut", peer));
  if (what < 930) return world_.run(say(random_.chance(500) ? "close" : "reset", peer)), void(speakers_[peer] = {});
  if (what < 945) return world_.run(say(random_.chance(500) ? "error" : "destroy", connection));
  if (what < 960) return world_.run(say("dereg", random_.chance(800) ? random_.pick({0u, 1u, 5u}) : region));
  if (what < 985) {
    const uint32_t access = region == 0 ? 3 : region == 1 ? 1 : region == 5 ? 2 : 0;
    return world_.run(say("alloc", region, 64 + random_.below(random_.chance(100) ? 1 << 20 : 70000), access));
  }
  if (what < 988) return world_.run("calm");
  if (what < 993) return world_.run(say("grant", region, connection));
  world_.run(random_.chance(300) ? "unlisten" : "listen");
}

// What an owner does for each connection that has come up.
void StreamMaker::chores() {
  for (; greeted_ < world_.owner().connections.size(); greeted_++) {
    const auto connection = static_cast<uint32_t>(greeted_);
    for (uint32_t i = random_.below(6); i > 0; i--) post_recv(connection);
    for (uint32_t i = random_.below(4); i > 0; i--) post_send(connection);
  }
}

void StreamMaker::connect(uint32_t peer) {
  speakers_[peer] = {};
  speakers_[peer].is_dialled = true;
  world_.run(say(random_.chance(700) ? "dial" : "answer", peer, random_.chance(500) ? "tcp" : "shm"));
}

void StreamMaker::speak(uint32_t peer) {
  Speaker& speaker = speakers_[peer];
  const PeerView& view = world_.view(peer);
  if (!speaker.is_dialled || !view.is_open) return connect(peer);
  // Whoever was refused mostly goes; some go on talking.
  if ((view.is_refused || view.has_ended) && random_.chance(400)) return connect(peer);
  if (speaker.preamble < sizeof(Preamble)) return say_preamble(peer);
  std::vector<uint8_t> bytes;
  for (uint32_t frames = 1 + random_.below(random_.chance(200) ? 12 : 3); frames > 0; frames--) {
    std::string pass;
    const std::vector<uint8_t> next = frame(peer, pass);
    if (pass.empty()) {
      append(bytes, next.data(), next.size());
      continue;
    }
    emit(peer, bytes);
    bytes.clear();
    world_.run(say("pass", peer, pass, hex(next.data(), next.size())));
  }
  if (random_.chance(recklessness_ / 10)) bytes = noise(random_.below(300));
  emit(peer, bytes);
}

void StreamMaker::say_preamble(uint32_t peer) {
  Speaker& speaker = speakers_[peer];
  Preamble preamble = Preamble::make(world_.view(peer).transport);
  auto* at = reinterpret_cast<uint8_t*>(&preamble);
  if (random_.chance(recklessness_ / 2))
    at[random_.below(sizeof preamble)] ^= static_cast<uint8_t>(1 << random_.below(8));
  if (random_.chance(recklessness_ / 5)) memcpy(at, "tartan-rdma: a verbs device, and it goes on", sizeof preamble);
  const auto left = static_cast<uint32_t>(sizeof preamble) - speaker.preamble;
  const uint32_t part = random_.chance(850) ? left : 1 + random_.below(left);
  std::vector<uint8_t> bytes(at + speaker.preamble, at + speaker.preamble + part);
  speaker.preamble += part;
  // Its first frames may come with it.
  std::string pass;
  if (part == left && random_.chance(300)) {
    const std::vector<uint8_t> first = frame(peer, pass);
    append(bytes, first.data(), first.size());
  }
  emit(peer, bytes);
}

// The next frame, its payload included; `pass`: descriptors that travel with it.
std::vector<uint8_t> StreamMaker::frame(uint32_t peer, std::string& pass) {
  Speaker& speaker = speakers_[peer];
  const PeerView& view = world_.view(peer);
  const bool is_shm = view.transport == TransportKind::shm;
  FrameHeader header{};
  speaker.recvs += random_.below(4);
  if (random_.chance(800)) speaker.acked = view.requests;
  header.ack = speaker.acked;
  header.recvs = speaker.recvs;
  header.seq = speaker.requests;
  header.imm = static_cast<uint32_t>(random_.next());
  header.follow = random_.chance(recklessness_ / 2) ? static_cast<uint8_t>(random_.next()) : 0;

  const uint32_t kind = random_.below(100);
  if (kind < 25) {
    header.type = random_.chance(500) ? FRAME_WRITE : FRAME_WRITE_IMM;
    if (is_shm && random_.chance(600)) header.type = header.type == FRAME_WRITE ? FRAME_PLACED : FRAME_PLACED_IMM;
    const Target to = target(ACCESS_REMOTE_WRITE, random_.chance(50) ? 65536 : 600);
    header.rkey = to.rkey;
    header.offset = to.offset;
    header.length = to.length;
    speaker.requests++;
  } else if (kind < 45) {
    header.type = FRAME_SEND;
    header.length = random_.chance(recklessness_) ? random_.below(6000) : random_.below(65);
    speaker.requests++;
  } else if (kind < 58) {
    header.type = FRAME_READ;
    const Target from = target(ACCESS_REMOTE_READ, random_.chance(100) ? 1 << 20 : 2000);
    header.rkey = from.rkey;
    header.offset = from.offset;
    header.length = from.length;
    speaker.requests++;
  } else if (kind < 75 && speaker.reads_answered < view.reads.size()) {
    const FrameHeader& read = view.reads[speaker.reads_answered];
    header.type = FRAME_READ_DATA;
    header.seq = read.seq;
    header.offset = speaker.read_placed;
    const uint32_t left = read.length - speaker.read_placed;
    header.length = random_.chance(700) ? left : random_.below(left + 1);
    speaker.read_placed += header.length;
    if (speaker.read_placed >= read.length) {
      speaker.read_placed = 0;
      speaker.reads_answered++;
    }
  } else if (kind < 85 && is_shm && speaker.maps_answered < view.maps.size()) {
    header.type = FRAME_MAP_FD;
    header.seq = 0;
    header.rkey = view.maps[speaker.maps_answered++];
    header.length = random_.chance(50) ? 0 : 1 + random_.below(100000);
    pass = say(!random_.chance(4 * recklessness_) ? "sealed" : random_.pick({"unsealed", "pipe", "short"}),
               header.length, !random_.chance(4 * recklessness_) ? 1 : random_.below(7));
  } else if (kind < 88) {
    header.type = is_shm && random_.chance(700) ? FRAME_MAP : FRAME_NAK;
    header.rkey = target(ACCESS_REMOTE_WRITE, 1).rkey;
    if (header.type == FRAME_NAK) header.status = random_.pick({REMOTE_ACCESS_ERROR, REMOTE_INVALID_REQUEST});
  } else if (kind < 89) {
    header.type = is_shm ? FRAME_UNMAP : FRAME_ACK;
    header.rkey = view.maps.empty() ? 7 : view.maps[random_.below(view.maps.size())];
  } else {
    header.type = FRAME_ACK;
    header.seq = 0;
  }
  if (random_.chance(recklessness_)) bend(header);

  std::vector<uint8_t> bytes;
  append(bytes, &header, sizeof header);
  if (!has_payload(header.type)) return bytes;
  uint32_t payload = std::min(header.length, 1u << 16);
  if (random_.chance(recklessness_ / 4)) payload = random_.below(payload + 40);
  const std::vector<uint8_t> filling = noise(payload);
  append(bytes, filling.data(), filling.size());
  return bytes;
}

void StreamMaker::bend(FrameHeader& header) {
  switch (random_.below(9)) {
    case 0:
      header.type =
          random_.chance(500) ? static_cast<uint8_t>(random_.next()) : static_cast<uint8_t>(random_.below(15));
      break;
    case 1:
      header.status = static_cast<uint8_t>(random_.next());
      break;
    case 2:
      header.zero = static_cast<uint8_t>(random_.next());
      break;
    case 3:
      header.seq = random_.bent(header.seq);
      break;
    case 4:
      header.ack = random_.bent(header.ack);
      break;
    case 5:
      header.rkey = random_.bent(header.rkey);
      break;
    case 6:
      header.offset = random_.bent(header.offset);
      break;
    case 7:
      header.length = random_.bent(header.length);
      break;
    default:
      header.recvs = random_.bent(header.recvs);
      break;
  }
}

// Sends it in one piece or in many, with the engine looking in between or not.
void StreamMaker::emit(uint32_t peer, const std::vector<uint8_t>& bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    size_t part = bytes.size() - at;
    if (random_.chance(300)) part = 1 + random_.below(std::min<size_t>(part, random_.pick({1u, 8u, 40u, 4000u})));
    world_.run(say("send", peer, hex(bytes.data() + at, part)));
    at += part;
    if (random_.chance(250)) world_.run("sync");
  }
  if (random_.chance(400)) world_.run("sync");
}

StreamMaker::Target StreamMaker::target(uint32_t access, uint32_t most) {
  uint32_t index = random_.below(Owner::HONEST);
  for (uint32_t tries = 0; tries < Owner::HONEST && !random_.chance(recklessness_ / 4); tries++) {
    const Region* region = world_.owner().region(index);
    if (world_.owner().is_usable(index) && (region->access & access) != 0) break;
    index = (index + 1) % Owner::HONEST;
  }
  const Region* region = world_.owner().region(index);
  if (!region) return {static_cast<uint32_t>(random_.next()), 0, random_.below(most)};
  const auto size = static_cast<uint32_t>(region->size);
  const uint32_t length = std::min({length_within(size), most, size});
  const uint32_t offset = random_.chance(300) ? size - length : random_.below(size - length + 1);
  return {region->rkey, offset, length};
}

uint32_t StreamMaker::length_within(uint32_t size) {
  return random_.pick({0u, 1u, 8u, random_.below(64), random_.below(4096), random_.below(size + 1), size});
}

void StreamMaker::post_send(uint32_t connection) {
  const uint8_t op = random_.pick<uint8_t>({WRITE, WRITE_WITH_IMM, READ, SEND});
  const Region* region = world_.owner().region(op == READ ? ANSWERS : Owner::SOURCE);
  uint32_t lkey = region ? region->lkey : 999;
  const uint32_t size = region ? static_cast<uint32_t>(region->size) : 100;
  std::string gather;
  for (uint32_t pieces = op == READ ? 1 : 1 + random_.below(2); pieces > 0; pieces--) {
    uint32_t length = std::min(length_within(size), random_.chance(100) ? size : 3000);
    uint32_t offset = random_.below(size - length + 1);
    if (random_.chance(recklessness_ / 3)) lkey = 1 + 7919 * random_.below(1000);
    if (random_.chance(recklessness_ / 3)) offset = random_.bent(size - length);
    if (random_.chance(recklessness_ / 3)) length = random_.bent(length);
    gather += say("", lkey, offset, length);
  }
  world_.run(say("post", connection, uint32_t{op}, random_.chance(800) ? 1 : 0, 1 + random_.below(3),
                 random_.below(80000), static_cast<uint32_t>(random_.next())) +
             gather);
}

void StreamMaker::post_recv(uint32_t connection) {
  const Region* region = world_.owner().region(RECEIVES);
  uint32_t lkey = region ? region->lkey : 999;
  const uint32_t size = region ? static_cast<uint32_t>(region->size) : 100;
  const uint32_t length = std::min(random_.chance(recklessness_) ? 0 : random_.pick({64u, 64u, 64u, 4096u}), size);
  uint32_t offset = random_.below(size - length + 1);
  if (random_.chance(recklessness_ / 10)) lkey = 1 + 7919 * random_.below(1000);
  if (random_.chance(recklessness_ / 10)) offset = random_.bent(size - length);
  world_.run(say("recv", connection, lkey, offset, length));
}

std::vector<uint8_t> StreamMaker::noise(uint32_t bytes) {
  std::vector<uint8_t> filling(bytes);
  const uint64_t value = random_.next();
  for (uint32_t i = 0; i < bytes; i++) filling[i] = static_cast<uint8_t>(value >> i % 8 * 8);
  return filling;
}

}  // namespace tartan::fuzz
