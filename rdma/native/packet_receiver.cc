#include "packet_receiver.h"

#include <algorithm>

namespace tartan {

using packet::UnitView;

PacketReceiver::PacketReceiver(Services& services, PacketCounters& counters, uint32_t qpn, Region* region,
                               const ReceiverOptions& options)
    : qpn(qpn),
      options(options),
      services_(services),
      counters_(counters),
      region_(region),
      slots_(options.slots),
      remembered_(REMEMBERED, Name{UINT64_MAX, 0, 0}),
      forgotten_(FORGOTTEN, Forgotten{{UINT64_MAX, 0, 0}, 0, 0}) {
  services_.hold(region_);
  const uint32_t most = options.unit_bytes / packet::MIN_CHUNK_BYTES;
  for (Slot& slot : slots_) slot.bits.resize((most + 63) / 64 + 1);
  for (uint32_t i = options.slots; i-- > 0;) free_.push_back(i);
  touched_.reserve(packet::MAX_ACK_ENTRIES);
}

PacketReceiver::~PacketReceiver() { services_.release(region_); }

PacketReceiver::Slot* PacketReceiver::find(uint64_t stripe, uint32_t counter) {
  const auto is_it = [&](const Slot& slot) {
    return slot.state != State::free && slot.stripe == stripe && slot.counter == counter;
  };
  if (is_it(slots_[last_found_])) return &slots_[last_found_];
  for (size_t i = 0; i < slots_.size(); i++) {
    if (is_it(slots_[i])) return &slots_[last_found_ = i];
  }
  return nullptr;
}

bool PacketReceiver::is_remembered(uint64_t stripe, uint32_t counter, uint32_t map_epoch) const {
  for (const Name& name : remembered_) {
    if (name.stripe == stripe && name.counter == counter && name.map_epoch == map_epoch) return true;
  }
  return false;
}

void PacketReceiver::take(const uint8_t* packet, uint32_t bytes, int64_t now_ms) {
  const UnitView header{packet + packet::HEADER_BYTES};
  const uint8_t type = packet[5];
  const uint32_t offset = packet::load32_be(packet + 16), chunk = packet::load16_be(packet + 20);
  const uint32_t header_bytes = header.header_bytes();
  const uint32_t wanted = header.unit_length() == 0 ? 1 : (header.unit_length() + chunk - 1) / chunk;
  if ((uint32_t{1} << header.shift()) > options.unit_bytes || bytes != packet::HEADER_BYTES + header_bytes + chunk ||
      offset % chunk != 0 || (wanted > 1 && chunk < packet::MIN_CHUNK_BYTES)) {
    counters_.malformed.add(1);
    return;
  }
  Slot* slot = find(header.stripe(), header.counter());
  if (slot == nullptr) {
    if (is_remembered(header.stripe(), header.counter(), header.map_epoch())) {
      counters_.duplicates.add(1);
      return say_whole(header, chunk);
    }
    if (free_.empty()) {
      counters_.no_slot.add(1);
      return;
    }
    slot = &slots_[free_.back()];
    free_.pop_back();
    begin(*slot, header, type, chunk);
  } else if (slot->map_epoch != header.map_epoch()) {
    // Driven again under a newer map: it replaces what has not been handed on. Else the writer has to come again.
    if (header.map_epoch() < slot->map_epoch || slot->state == State::whole) {
      counters_.stale.add(1);
      return;
    }
    begin(*slot, header, type, chunk);
  } else if (slot->state == State::whole) {
    counters_.duplicates.add(1);
    ack_now_ = true;
    return touch(*slot);
  } else if (slot->chunk != chunk || slot->type != type || slot->unit != header.unit()) {
    begin(*slot, header, type, chunk);  // another way for the same unit: through the switch, or from the host
  }
  slot->touched_ms = now_ms;
  const uint32_t index = offset / chunk;
  if (index < slot->wanted) {
    uint64_t& word = slot->bits[index / 64];
    const uint64_t bit = uint64_t{1} << index % 64;
    if (word & bit) {
      counters_.duplicates.add(1);
      ack_now_ = true;
    } else {
      word |= bit;
      slot->have++;
      const uint32_t length = std::min(chunk, slot->payload_bytes - std::min(offset, slot->payload_bytes));
      memcpy(payload_of(*slot) + offset, packet + packet::HEADER_BYTES + header_bytes, length);
      counters_.bytes_received.add(length);
      services_.counters.bytes_copied.add(length);
      while (slot->first_missing < slot->wanted && slot->bits[slot->first_missing / 64] >> slot->first_missing % 64 & 1)
        slot->first_missing++;
    }
  }
  // Past a short unit's end: nothing is to be placed, the acknowledgement says how far this unit goes.
  if (slot->have == slot->wanted) {
    finish(*slot);
    if (slot->state == State::free) return;
  }
  touch(*slot);
}

void PacketReceiver::begin(Slot& slot, const UnitView& header, uint8_t type, uint32_t chunk) {
  slot.state = State::filling;
  slot.unit = static_cast<uint8_t>(header.unit());
  slot.type = type;
  slot.stripe = header.stripe();
  slot.counter = header.counter();
  slot.map_epoch = header.map_epoch();
  slot.incarnation = incarnation_of(header);
  slot.chunk = chunk;
  slot.payload_bytes = header.unit_length();
  slot.wanted = slot.payload_bytes == 0 ? 1 : (slot.payload_bytes + chunk - 1) / chunk;
  slot.have = slot.first_missing = 0;
  slot.header_bytes = header.header_bytes();
  std::fill_n(slot.bits.begin(), (slot.wanted + 63) / 64, 0);
  memcpy(header_of(slot), header.at, slot.header_bytes);
}

void PacketReceiver::finish(Slot& slot) {
  ack_now_ = true;
  if (slot.type == packet::PARITY && !finish_parity(header_of(slot), slot)) {
    counters_.mismatch.add(1);
    drop(slot);
    return;
  }
  slot.state = State::whole;
  counters_.units_placed.add(1);
  const uint32_t imm = static_cast<uint32_t>(index_of(slot)) | (slot.header_bytes / 4) << 16;
  services_.complete(RECV_WRITE_WITH_IMM, SUCCESS, qpn, 0, slot.header_bytes + slot.payload_bytes, imm);
}

// The switch could not compute a CRC32C: what the header lacks is added here, if the payload is the one that it speaks
// of.
bool PacketReceiver::finish_parity(uint8_t* header, const Slot& slot) {
  if (slot.header_bytes == packet::DATA_HEADER_BYTES) return false;
  const uint32_t k = UnitView{header}.k();
  if (load32(header + packet::DIGESTS.seal_offset) !=
      packet::stripe_seal(header, header + packet::DIGESTS.crc_list_offset, k))
    return false;
  Digest digest;
  coding_digest(payload_of(slot), slot.payload_bytes, &digest);
  if (memcmp(header + packet::DIGESTS.summary_offset, digest.summary, 16) != 0) return false;
  store32(header + packet::DIGESTS.payload_crc_offset, digest.crc32c);
  seal(packet::DIGESTS, header, slot.header_bytes);
  return true;
}

void PacketReceiver::release(uint32_t index, bool durable) {
  if (index >= slots_.size() || slots_[index].state != State::whole) return;
  Slot& slot = slots_[index];
  if (durable) remembered_[remembered_at_++ % REMEMBERED] = {slot.stripe, slot.counter, slot.map_epoch};
  // What was to be said of this slot is said before it holds another unit.
  for (Touched& touched : touched_) {
    if (touched.slot == static_cast<int32_t>(index))
      touched = {-1, {{slot.stripe, slot.counter, slot.map_epoch}, slot.chunk, slot.unit}};
  }
  slot.state = State::free;
  free_.push_back(index);
}

void PacketReceiver::reclaim(int64_t now_ms) {
  for (Slot& slot : slots_) {
    if (slot.state != State::filling || now_ms - slot.touched_ms < options.reclaim_ms) continue;
    forget(slot);
    drop(slot);
    counters_.reclaimed.add(1);
  }
}

// Chunks of it have been acknowledged, and the writer will not send those again by itself. When the next of the others
// comes, the acknowledgement says that it is of another incarnation, and the writer begins anew.
void PacketReceiver::forget(const Slot& slot) {
  const Name name{slot.stripe, slot.counter, slot.map_epoch};
  const auto incarnation = static_cast<uint8_t>((slot.incarnation + 1) & 127);
  for (Forgotten& known : forgotten_) {
    if (known.name.stripe != name.stripe || known.name.counter != name.counter || known.unit != slot.unit ||
        known.name.map_epoch != name.map_epoch)
      continue;
    known.incarnation = incarnation;
    return;
  }
  forgotten_[forgotten_at_++ % FORGOTTEN] = {name, slot.unit, incarnation};
}

uint8_t PacketReceiver::incarnation_of(const UnitView& header) const {
  for (const Forgotten& known : forgotten_) {
    if (known.name.stripe == header.stripe() && known.name.counter == header.counter() &&
        known.name.map_epoch == header.map_epoch() && known.unit == header.unit())
      return known.incarnation;
  }
  return 0;
}

// Nothing more is said of it.
void PacketReceiver::drop(Slot& slot) {
  const auto index = static_cast<int32_t>(index_of(slot));
  std::erase_if(touched_, [&](const Touched& touched) { return touched.slot == index; });
  slot.state = State::free;
  free_.push_back(static_cast<uint32_t>(index));
}

void PacketReceiver::touch(Slot& slot) {
  if (++since_ack_ >= ACK_EVERY) ack_now_ = true;
  const auto index = static_cast<int32_t>(index_of(slot));
  for (const Touched& touched : touched_) {
    if (touched.slot == index) return;
  }
  touched_.push_back({index, {}});
  if (touched_.size() >= packet::MAX_ACK_ENTRIES) ack_now_ = true;
}

void PacketReceiver::say_whole(const UnitView& header, uint32_t chunk) {
  ack_now_ = true;
  for (const Touched& touched : touched_) {
    if (touched.slot < 0 && touched.said.name.stripe == header.stripe() &&
        touched.said.name.counter == header.counter())
      return;
  }
  if (touched_.size() < 2 * packet::MAX_ACK_ENTRIES) {
    touched_.push_back(
        {-1, {{header.stripe(), header.counter(), header.map_epoch()}, chunk, static_cast<uint8_t>(header.unit())}});
    // Who sent it again may not have heard that it is durable: JavaScript says so once more, over the session.
    services_.complete(RECV_DUPLICATE, SUCCESS, qpn, static_cast<uint32_t>(header.stripe()), header.counter(),
                       static_cast<uint32_t>(header.stripe() >> 32), header.unit(), header.map_epoch());
  }
}

uint32_t PacketReceiver::make_ack(uint8_t* packet, uint32_t room) {
  if (touched_.empty()) {
    ack_now_ = false;
    since_ack_ = 0;
    return 0;
  }
  const uint32_t fixed = packet::HEADER_BYTES + packet::ACK_PREFIX_BYTES;
  const uint32_t count = std::min<uint32_t>(
      {static_cast<uint32_t>(touched_.size()), packet::MAX_ACK_ENTRIES, (room - fixed) / packet::ACK_ENTRY_BYTES});
  packet::put_header(packet, packet::ACK, 0, 0, 0, 0, 0, count);
  uint8_t* at = packet + packet::HEADER_BYTES;
  packet::store64(at, options.file);
  store32(at + 8, options.writer_epoch);
  store32(at + 12, 0);
  at += packet::ACK_PREFIX_BYTES;
  for (uint32_t i = 0; i < count; i++, at += packet::ACK_ENTRY_BYTES) {
    const Touched& touched = touched_[i];
    memset(at, 0, packet::ACK_ENTRY_BYTES);
    const Slot* slot = touched.slot < 0 ? nullptr : &slots_[static_cast<size_t>(touched.slot)];
    packet::store64(at, slot ? slot->stripe : touched.said.name.stripe);
    store32(at + 8, slot ? slot->counter : touched.said.name.counter);
    store32(at + 12, slot ? slot->map_epoch : touched.said.name.map_epoch);
    at[16] = slot ? slot->unit : touched.said.unit;
    at[17] = !slot || slot->state == State::whole ? 1 : 0;
    if (slot) at[17] = static_cast<uint8_t>(at[17] | slot->incarnation << 1);
    const uint32_t chunk = slot ? slot->chunk : touched.said.chunk;
    at[18] = static_cast<uint8_t>(chunk);
    at[19] = static_cast<uint8_t>(chunk >> 8);
    if (!slot) continue;
    store32(at + 20, slot->first_missing);
    for (uint32_t bit = 0; bit < packet::ACK_BITS; bit++) {
      const uint32_t index = slot->first_missing + bit;
      if (index >= slot->wanted) break;
      if (slot->bits[index / 64] >> index % 64 & 1)
        at[24 + bit / 8] = static_cast<uint8_t>(at[24 + bit / 8] | 1 << bit % 8);
    }
  }
  touched_.erase(touched_.begin(), touched_.begin() + count);
  if (touched_.empty()) {
    ack_now_ = false;
    since_ack_ = 0;
  }
  packet::store16_be(packet + 22, packet::fold(packet::sum16(packet, packet::HEADER_BYTES)));
  return fixed + count * packet::ACK_ENTRY_BYTES;
}

}  // namespace tartan
