#include "packet_sender.h"

#include <errno.h>
#include <string.h>

#include <algorithm>

namespace tartan {

using packet::UnitView;

namespace {
const uint8_t ZEROS[packet::MAX_BYTES] = {};
constexpr int64_t PACE_SLACK_US = 300;  // packets due so soon leave together
constexpr uint32_t MAX_CHUNKS = (4u << 20) / packet::MIN_CHUNK_BYTES;
}  // namespace

PacketSender::PacketSender(Services& services, PacketCounters& counters, uint32_t qpn, uint32_t most_packets)
    : qpn(qpn),
      services_(services),
      counters_(counters),
      window_(most_packets),
      sent_(1024, services.counters.allocations),
      lost_(1024, services.counters.allocations) {
  memset(messages_, 0, sizeof messages_);
}

PacketSender::~PacketSender() { flush(); }

void PacketSender::flush() {
  while (!active_.empty()) complete(*operations_[active_.front()], FLUSHED);
}

void PacketSender::post(const WorkRequest& request) {
  if (request.opcode == CANCEL) return cancel(request.wr_id);
  if (free_.empty()) {
    services_.counters.allocations.add(1);
    free_.push_back(static_cast<uint32_t>(operations_.size()));
    operations_.push_back(std::make_unique<Operation>());
    operations_.back()->index = free_.back();
  }
  const uint32_t index = free_.back();
  Operation& operation = *operations_[index];
  operation.opcode = request.opcode;
  operation.wr_id = request.wr_id;
  for (Unit& unit : operation.units) unit.wanted = 0;
  const bool sound =
      request.opcode == SEND_STRIPE ? prepare_stripe(operation, request) : prepare_unit(operation, request);
  if (!sound) return services_.complete(request.opcode, LOCAL_PROTECTION_ERROR, qpn, request.wr_id);
  free_.pop_back();
  active_.push_back(index);
  start(operation);
}

// Words 3 to 15: lkey, data headers offset, units offset, stride, group, chunk, units to wait for, IPv4 address, port.
bool PacketSender::prepare_stripe(Operation& operation, const WorkRequest& request) {
  const auto& wr = request.send_stripe;
  Region* region = services_.regions.local(wr.lkey);
  if (!region || !region->contains(wr.headers_offset, packet::MAX_K * packet::DATA_HEADER_BYTES)) return false;
  // What is judged is what is used, whatever happens to the memory meanwhile.
  uint8_t headers[packet::MAX_K * packet::DATA_HEADER_BYTES];
  memcpy(headers, region->base + wr.headers_offset, sizeof headers);
  const UnitView first{headers};
  if (!first.is_plausible() || first.unit() != 0 || wr.chunk == 0 || wr.chunk > packet::MAX_BYTES) return false;
  const uint32_t k = operation.k = first.k();
  operation.m = first.m();
  if (packet::HEADER_BYTES + packet::DATA_HEADER_BYTES + k * (packet::DESCRIPTOR_BYTES + wr.chunk) > packet::MAX_BYTES)
    return false;
  uint8_t* descriptor = operation.prefix + packet::DATA_HEADER_BYTES;
  uint8_t crcs[4 * packet::MAX_K];
  for (uint32_t c = 0; c < k; c++, descriptor += packet::DESCRIPTOR_BYTES) {
    const UnitView header{headers + c * packet::DATA_HEADER_BYTES};
    const uint64_t at = wr.units_offset + uint64_t{c} * wr.stride;
    // All of one stripe: otherwise a unit could be longer than the first, by which the chunks are counted.
    const bool is_of_it =
        header.k() == k && header.shift() == first.shift() && header.stripe_length() == first.stripe_length();
    if (!header.is_plausible() || header.unit() != c || !is_of_it || at > UINT32_MAX ||
        !region->contains(static_cast<uint32_t>(at), header.unit_length()))
      return false;
    operation.data[c] = region->base + at;
    operation.length[c] = header.unit_length();
    memcpy(descriptor, header.at + 32, 4);
    // the payload's CRC, and the seal beside it
    memcpy(descriptor + 4, header.at + packet::DIGESTS.payload_crc_offset, 8);
    memcpy(descriptor + 12, header.at + packet::DIGESTS.summary_offset, 16);
    memcpy(crcs + 4 * c, header.at + packet::DIGESTS.payload_crc_offset, 4);
  }
  uint8_t* stripe = operation.prefix;
  memcpy(stripe, headers, packet::DATA_HEADER_BYTES);
  stripe[8] = stripe[11] = 0;
  memset(stripe + 32, 0, 4);
  memset(stripe + 56, 0, 24);
  store32(stripe + packet::DIGESTS.seal_offset, packet::stripe_seal(stripe, crcs, k));
  operation.prefix_bytes = packet::DATA_HEADER_BYTES + k * packet::DESCRIPTOR_BYTES;
  operation.group = wr.group;
  operation.chunk = wr.chunk;
  operation.region = region;
  operation.to.sin_addr.s_addr = htonl(wr.address);
  operation.to.sin_port = htons(static_cast<uint16_t>(wr.port));
  operation.chunks = (std::max(1u, operation.length[0]) + wr.chunk - 1) / wr.chunk;
  if (operation.chunks > MAX_CHUNKS) return false;
  for (uint32_t unit = 0; unit < k + operation.m; unit++) {
    if (wr.units >> unit & 1) expect(operation, unit, operation.length[unit < k ? unit : 0]);
  }
  return wr.units != 0;
}

// Words 3 to 15: lkey, header offset, header bytes, payload offset, payload bytes, largest chunk, IPv4 address, port.
bool PacketSender::prepare_unit(Operation& operation, const WorkRequest& request) {
  const auto& wr = request.send_unit;
  Region* region = services_.regions.local(wr.lkey);
  if (!region || wr.header_bytes < packet::DATA_HEADER_BYTES ||
      wr.header_bytes > packet::DATA_HEADER_BYTES + 4 * packet::MAX_K)
    return false;
  if (!region->contains(wr.header_offset, wr.header_bytes) || !region->contains(wr.payload_offset, wr.payload_bytes))
    return false;
  memcpy(operation.prefix, region->base + wr.header_offset, wr.header_bytes);
  const UnitView header{operation.prefix};
  if (!header.is_plausible() || header.header_bytes() != wr.header_bytes || header.unit_length() != wr.payload_bytes ||
      wr.most_chunk < packet::MIN_CHUNK_BYTES || wr.most_chunk > packet::MAX_BYTES)
    return false;
  if (packet::HEADER_BYTES + wr.header_bytes + wr.most_chunk > packet::MAX_BYTES) return false;
  operation.k = header.k();
  operation.m = header.m();
  operation.prefix_bytes = wr.header_bytes;
  operation.group = 0;
  operation.data[0] = region->base + wr.payload_offset;
  operation.length[0] = wr.payload_bytes;
  // As many chunks as it takes, and all of about the same length, so that little is padding.
  operation.chunks = std::max(1u, (wr.payload_bytes + wr.most_chunk - 1) / wr.most_chunk);
  operation.chunk = std::max(operation.chunks == 1 ? 4 : packet::MIN_CHUNK_BYTES,
                             ((wr.payload_bytes + operation.chunks - 1) / operation.chunks + 3) & ~3u);
  operation.region = region;
  operation.to.sin_addr.s_addr = htonl(wr.address);
  operation.to.sin_port = htons(static_cast<uint16_t>(wr.port));
  if (operation.chunk > wr.most_chunk || operation.chunks > MAX_CHUNKS) return false;
  expect(operation, header.unit(), wr.payload_bytes);
  return true;
}

void PacketSender::expect(Operation& operation, uint32_t index, uint32_t length) {
  Unit& unit = operation.units[index];
  unit.wanted = (std::max(1u, length) + operation.chunk - 1) / operation.chunk;
  unit.below = 0;
  unit.incarnation = 0;
  unit.newest_us = 0;
  if (unit.bits.size() * 64 < unit.wanted) unit.bits.resize((unit.wanted + 63) / 64);
  std::fill_n(unit.bits.begin(), (unit.wanted + 63) / 64, 0);
}

void PacketSender::start(Operation& operation) {
  const UnitView header{operation.prefix};
  operation.file = header.file();
  operation.stripe = header.stripe();
  operation.writer_epoch = header.writer_epoch();
  operation.counter = header.counter();
  operation.map_epoch = header.map_epoch();
  operation.to.sin_family = AF_INET;
  operation.next = operation.placed = 0;
  operation.prefix_sum = packet::sum16(operation.prefix, packet::DATA_HEADER_BYTES);
  services_.hold(operation.region);
  const uint32_t chunks = operation.chunks;
  if (operation.state.size() < chunks) {
    services_.counters.allocations.add(1);
    operation.state.resize(chunks);
    operation.waiting.resize(chunks);
    operation.expected.resize(chunks);
    operation.sendings.resize(chunks);
    operation.sent_us.resize(chunks);
  }
  std::fill_n(operation.state.begin(), chunks, Chunk::unsent);
  std::fill_n(operation.waiting.begin(), chunks, 0);
  std::fill_n(operation.sendings.begin(), chunks, 0);
  for (const Unit& unit : operation.units) {
    for (uint32_t chunk = 0; chunk < unit.wanted; chunk++) operation.waiting[chunk]++;
  }
  std::copy_n(operation.waiting.begin(), chunks, operation.expected.begin());
  // Nobody waits for a chunk past the end of every unit that is not missing: it need not be sent at all.
  for (uint32_t chunk = 0; chunk < chunks; chunk++) {
    if (operation.waiting[chunk] != 0) continue;
    operation.state[chunk] = Chunk::placed;
    operation.placed++;
  }
}

void PacketSender::complete(Operation& operation, uint8_t status) {
  services_.complete(operation.opcode, status, qpn, operation.wr_id);
  for (uint32_t chunk = 0; chunk < operation.chunks; chunk++) {
    if (operation.state[chunk] == Chunk::in_flight) in_flight_--;
  }
  services_.release(operation.region);
  operation.generation++;
  const auto found = std::find(active_.begin(), active_.end(), operation.index);
  if (static_cast<size_t>(found - active_.begin()) < next_unsent_) next_unsent_--;
  active_.erase(found);
  last_found_ = 0;
  free_.push_back(operation.index);
}

void PacketSender::cancel(uint32_t wr_id) {
  for (uint32_t index : active_) {
    if (operations_[index]->wr_id == wr_id) return complete(*operations_[index], FLUSHED);
  }
}

// ---- acknowledgements

// Operations of several files, or of one unit on several ways, may bear the same stripe, version and unit: an entry is
// of the one that it names in full.
PacketSender::Operation* PacketSender::find(const Entry& entry) {
  bool is_foreign = false;
  const auto is_it = [&](size_t position) {
    const Operation& operation = *operations_[active_[position]];
    if (operation.stripe != entry.stripe || operation.counter != entry.counter ||
        operation.map_epoch != entry.map_epoch || operation.units[entry.unit].wanted == 0 ||
        operation.file != entry.file || operation.writer_epoch != entry.writer_epoch)
      return false;
    // A unit was sent to one node, and nobody else can have placed it. (A stripe was sent to a switch; its nodes
    // answer.)
    if (operation.opcode == SEND_UNIT && (entry.from->sin_addr.s_addr != operation.to.sin_addr.s_addr ||
                                          entry.from->sin_port != operation.to.sin_port)) {
      is_foreign = true;
      return false;
    }
    return entry.is_whole || entry.chunk == operation.chunk;
  };
  if (last_found_ < active_.size() && is_it(last_found_)) return operations_[active_[last_found_]].get();
  for (size_t position = 0; position < active_.size(); position++) {
    if (is_it(position)) return operations_[active_[last_found_ = position]].get();
  }
  if (is_foreign) counters_.unknown.add(1);
  return nullptr;
}

void PacketSender::take_ack(const uint8_t* packet, uint32_t bytes, const sockaddr_in& from, int64_t now_us) {
  const uint32_t count = packet::load16_be(packet + 20);
  if (count > packet::MAX_ACK_ENTRIES ||
      bytes != packet::HEADER_BYTES + packet::ACK_PREFIX_BYTES + count * packet::ACK_ENTRY_BYTES)
    return counters_.malformed.add(1);
  counters_.acks_received.add(1);
  const uint8_t* prefix = packet + packet::HEADER_BYTES;
  const uint8_t* at = prefix + packet::ACK_PREFIX_BYTES;
  for (uint32_t i = 0; i < count; i++, at += packet::ACK_ENTRY_BYTES) {
    const uint32_t index = at[16];
    if (index >= MAX_UNITS) continue;
    const bool is_whole = (at[17] & 1) != 0;
    Operation* operation = find({packet::load64(prefix), packet::load64(at), load32(prefix + 8), load32(at + 8),
                                 load32(at + 12), index, packet::load16(at + 18), is_whole, &from});
    if (!operation) continue;
    Unit& unit = operation->units[index];
    if (is_whole) {
      for (uint32_t chunk = unit.below; chunk < unit.wanted; chunk++) acknowledge(*operation, unit, chunk, now_us);
      unit.below = unit.wanted;
    } else {
      if (at[17] >> 1 != unit.incarnation) {
        begin_anew(*operation, unit);
        unit.incarnation = at[17] >> 1;
      }
      const uint32_t below = std::min(load32(at + 20), unit.wanted);
      for (uint32_t chunk = unit.below; chunk < below; chunk++) acknowledge(*operation, unit, chunk, now_us);
      unit.below = std::max(unit.below, below);
      for (uint32_t bit = 0; bit < packet::ACK_BITS && below + bit < unit.wanted; bit++) {
        if (at[24 + bit / 8] >> bit % 8 & 1) acknowledge(*operation, unit, below + bit, now_us);
      }
    }
    if (operation->placed == operation->chunks) complete(*operation, SUCCESS);
  }
  find_lost(now_us);
}

// The node has let go of what it had acknowledged: all of that unit is sent again.
void PacketSender::begin_anew(Operation& operation, Unit& unit) {
  for (uint32_t chunk = 0; chunk < unit.wanted; chunk++) {
    uint64_t& word = unit.bits[chunk / 64];
    const uint64_t bit = uint64_t{1} << chunk % 64;
    if (!(word & bit)) continue;
    word &= ~bit;
    operation.waiting[chunk]++;
    if (operation.state[chunk] != Chunk::placed) continue;
    operation.state[chunk] = Chunk::lost;
    operation.placed--;
    lost_.push() = {operation.index, operation.generation, chunk, operation.sent_us[chunk]};
  }
  unit.below = 0;
}

void PacketSender::acknowledge(Operation& operation, Unit& unit, uint32_t chunk, int64_t now_us) {
  uint64_t& word = unit.bits[chunk / 64];
  const uint64_t bit = uint64_t{1} << chunk % 64;
  if (word & bit) return;
  word |= bit;
  progress_us_ = now_us;
  is_probed_ = false;
  const bool is_latest = operation.sendings[chunk] == 1 || now_us - operation.sent_us[chunk] >= window_.least_us();
  if (is_latest) {
    unit.newest_us = std::max(unit.newest_us, operation.sent_us[chunk]);
    newest_us_ = std::max(newest_us_, unit.newest_us);
  }
  operation.waiting[chunk]--;
  if (operation.waiting[chunk] != 0) return;
  if (operation.state[chunk] == Chunk::in_flight) {
    in_flight_--;
    if (is_latest) newest_placed_us_ = std::max(newest_placed_us_, operation.sent_us[chunk]);
    newest_us_ = std::max(newest_us_, newest_placed_us_);
    window_.on_acknowledged(operation.sendings[chunk] == 1 ? std::max<int64_t>(1, now_us - operation.sent_us[chunk])
                                                           : 0);
  }
  operation.state[chunk] = Chunk::placed;
  operation.placed++;
}

// ---- loss

const PacketSender::Operation* PacketSender::live(const Sent& sent) const {
  const Operation& operation = *operations_[sent.operation];
  const bool is_live = operation.generation == sent.generation && operation.state[sent.chunk] == Chunk::in_flight &&
                       operation.sent_us[sent.chunk] == sent.at_us;
  return is_live ? &operation : nullptr;
}

void PacketSender::lose(const Sent& sent) {
  Operation& operation = *operations_[sent.operation];
  operation.state[sent.chunk] = Chunk::lost;
  in_flight_--;
  lost_.push() = sent;
}

// A packet is lost for a node when one of the same stripe sent a while after it is there, or when one sent after it is
// everywhere.
bool PacketSender::is_overtaken(const Sent& sent) const {
  const int64_t latest = sent.at_us + window_.reordering_us();
  if (latest <= newest_placed_us_) return true;
  for (const Unit& unit : operations_[sent.operation]->units) {
    if (sent.chunk < unit.wanted && latest <= unit.newest_us && !(unit.bits[sent.chunk / 64] >> sent.chunk % 64 & 1))
      return true;
  }
  return false;
}

void PacketSender::find_lost(int64_t now_us) {
  for (uint32_t i = sent_.head(); i != sent_.tail(); i++) {
    const Sent sent = sent_.at(i);
    if (!live(sent)) continue;
    if (sent.at_us + window_.reordering_us() > newest_us_) break;
    if (!is_overtaken(sent)) continue;
    const Operation& operation = *operations_[sent.operation];
    // A stripe packet that reached some nodes got through this side's link and the switch: only a copy of it was lost.
    window_.on_lost(sent.at_us, now_us, operation.waiting[sent.chunk] < operation.expected[sent.chunk]);
    lose(sent);
  }
  while (!sent_.empty() && !live(sent_.front())) sent_.pop();
  if (in_flight_ == 0) return;
  if (now_us - progress_us_ >= window_.timeout_us()) {
    window_.on_timeout(now_us);
    progress_us_ = now_us;
    for (; !sent_.empty(); sent_.pop()) {
      if (live(sent_.front())) lose(sent_.front());
    }
  } else if (!is_probed_ && now_us >= probe_due_us()) {
    is_probed_ = true;
    lose(sent_.front());
    sent_.pop();
  }
}

// ---- sending

bool PacketSender::take_next(uint32_t& index, uint32_t& chunk) {
  for (; !lost_.empty(); lost_.pop()) {
    const Sent& sent = lost_.front();
    const Operation& operation = *operations_[sent.operation];
    if (operation.generation != sent.generation || operation.state[sent.chunk] != Chunk::lost) continue;
    index = sent.operation;
    chunk = sent.chunk;
    lost_.pop();
    counters_.packets_retransmitted.add(1);
    return true;
  }
  for (; next_unsent_ < active_.size(); next_unsent_++) {
    Operation& operation = *operations_[active_[next_unsent_]];
    while (operation.next < operation.chunks && operation.state[operation.next] != Chunk::unsent) operation.next++;
    if (operation.next == operation.chunks) continue;
    index = active_[next_unsent_];
    chunk = operation.next++;
    return true;
  }
  return false;
}

// Describes one packet in messages_[at]; returns its length.
uint32_t PacketSender::build(Operation& operation, uint32_t chunk, uint32_t at) {
  const bool is_stripe = operation.opcode == SEND_STRIPE;
  const uint32_t offset = chunk * operation.chunk;
  uint8_t* header = headers_[at];
  packet::put_header(header, is_stripe ? packet::STRIPE : packet::UNIT, operation.k, operation.m, operation.group,
                     operation.map_epoch, offset, operation.chunk);
  packet::store16_be(header + 22, packet::fold(packet::sum16(header, packet::HEADER_BYTES) + operation.prefix_sum));
  iovec* piece = pieces_[at];
  *piece++ = {header, packet::HEADER_BYTES};
  *piece++ = {operation.prefix, operation.prefix_bytes};
  for (uint32_t c = 0; c < (is_stripe ? operation.k : 1); c++) {
    const uint32_t length = std::min(operation.chunk, operation.length[c] - std::min(offset, operation.length[c]));
    if (length > 0) *piece++ = {const_cast<uint8_t*>(operation.data[c]) + offset, length};
    if (length < operation.chunk) *piece++ = {const_cast<uint8_t*>(ZEROS), operation.chunk - length};
  }
  msghdr& message = messages_[at].msg_hdr;
  message.msg_name = &operation.to;
  message.msg_namelen = sizeof operation.to;
  message.msg_iov = pieces_[at];
  message.msg_iovlen = static_cast<size_t>(piece - pieces_[at]);
  return packet::HEADER_BYTES + operation.prefix_bytes + operation.chunk * (is_stripe ? operation.k : 1);
}

int64_t PacketSender::pump(int fd, int64_t now_us) {
  find_lost(now_us);
  const int64_t pace_us = window_.pace_us();
  if (pace_due_us_ < now_us - PACE_SLACK_US) pace_due_us_ = now_us - PACE_SLACK_US;
  bool more = true;
  while (more && in_flight_ < static_cast<uint32_t>(window_.packets()) && pace_due_us_ <= now_us + PACE_SLACK_US) {
    Sent batch[BATCH];
    uint32_t count = 0;
    for (; count < BATCH && in_flight_ < static_cast<uint32_t>(window_.packets()) &&
           pace_due_us_ <= now_us + PACE_SLACK_US;
         count++) {
      uint32_t index, chunk;
      if (!take_next(index, chunk)) {
        more = false;
        break;
      }
      Operation& operation = *operations_[index];
      counters_.bytes_sent.add(build(operation, chunk, count));
      if (in_flight_++ == 0) {
        progress_us_ = now_us;
        is_probed_ = false;
      }
      operation.state[chunk] = Chunk::in_flight;
      operation.sent_us[chunk] = now_us;
      if (operation.sendings[chunk] < 255) operation.sendings[chunk]++;
      batch[count] = {index, operation.generation, chunk, now_us};
      pace_due_us_ += pace_us;
    }
    if (count == 0) break;
    uint32_t done = 0;
    while (done < count) {
      const int sent = sendmmsg(fd, messages_ + done, count - done, MSG_NOSIGNAL);
      if (sent > 0) {
        done += static_cast<uint32_t>(sent);
        continue;
      }
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == ENOBUFS) {
        counters_.send_blocked.add(1);
        break;
      }
      if (errno == EMSGSIZE && operations_[batch[done].operation]->generation == batch[done].generation)
        complete(*operations_[batch[done].operation], LENGTH_ERROR);
      done++;  // refused by this host (a filter, no route): as good as lost on the way
    }
    counters_.packets_sent.add(done);
    for (uint32_t i = 0; i < count; i++) {
      if (i < done) {
        sent_.push() = batch[i];
        continue;
      }
      // No room in the socket: it is sent again, and that is no congestion of the path.
      if (!live(batch[i])) continue;
      operations_[batch[i].operation]->state[batch[i].chunk] = Chunk::lost;
      in_flight_--;
      lost_.push() = batch[i];
    }
    if (done < count) return now_us + 1000;
  }
  counters_.set(counters_.window, static_cast<uint64_t>(window_.packets()));
  counters_.set(counters_.smoothed_rtt_us, static_cast<uint64_t>(window_.smoothed_us()));
  int64_t due = 0;
  if (in_flight_ > 0) due = is_probed_ ? progress_us_ + window_.timeout_us() : probe_due_us();
  if (more && in_flight_ < static_cast<uint32_t>(window_.packets()))
    due = due == 0 ? pace_due_us_ - PACE_SLACK_US : std::min(due, pace_due_us_ - PACE_SLACK_US);
  return due == 0 ? 0 : std::max(due, now_us + 50);
}

}  // namespace tartan
