// A stripe packet must be what it says. What only a CRC32C can tell is the node's to check: seals, payload CRCs, summaries.

control Check(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    apply {
        bit<16> payload = (bit<16>) hdr.packet.k * (DESCRIPTOR_BYTES + CHUNK_BYTES);
        bit<16> udp_bytes = UDP_BYTES + PACKET_HEADER_BYTES + UNIT_HEADER_BYTES + payload;

        if (hdr.packet.k == 0 || hdr.packet.k > 8 || hdr.packet.m == 0 || hdr.packet.m > MAX_M) { meta.drop_reason = DROP_SHAPE; }
        else if (hdr.unit.magic != UNIT_MAGIC || hdr.unit.version != UNIT_FORMAT_VERSION) { meta.drop_reason = DROP_VERSION; }
        else if (hdr.unit.k != hdr.packet.k || hdr.unit.m != hdr.packet.m) { meta.drop_reason = DROP_SHAPE; }
        else if (hdr.packet.k > MAX_K || hdr.packet.chunk_bytes != CHUNK_BYTES) { meta.drop_reason = DROP_CLASS; }
        else if (hdr.udp.bytes != udp_bytes || hdr.ipv4.total_bytes != IPV4_BYTES + udp_bytes) { meta.drop_reason = DROP_LENGTH; }
        else if (sm.checksum_error == 1) { meta.drop_reason = DROP_CHECKSUM; }
    }
}
