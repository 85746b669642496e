// Internet checksums (RFC 1071): the packet header's, over itself and the unit header, and IPv4's. Verified on what is
// addressed to us, recomputed on what we have made. Traffic that only passes keeps its checksums, right or wrong:
// forwarding adjusts the IPv4 one for the time to live and touches nothing else.

#define PACKET_FIELDS hdr.packet.magic, hdr.packet.version, hdr.packet.type, hdr.packet.k, hdr.packet.m, \
    hdr.packet.group, hdr.packet.map_epoch, hdr.packet.offset, hdr.packet.chunk_bytes
#define UNIT_FIELDS hdr.unit.magic, hdr.unit.version, hdr.unit.code, hdr.unit.k, hdr.unit.m, \
    hdr.unit.unit, hdr.unit.lg_unit_bytes, hdr.unit.flags, hdr.unit.extension_words, hdr.unit.cluster, \
    hdr.unit.file, hdr.unit.stripe, hdr.unit.unit_length, hdr.unit.stripe_length, hdr.unit.map_epoch, \
    hdr.unit.writer_epoch, hdr.unit.counter, hdr.unit.commit_mark, hdr.unit.payload_crc, hdr.unit.seal, \
    hdr.unit.summary, hdr.unit.missing
#define IPV4_FIELDS hdr.ipv4.version, hdr.ipv4.header_words, hdr.ipv4.tos, hdr.ipv4.total_bytes, \
    hdr.ipv4.identification, hdr.ipv4.flags, hdr.ipv4.fragment_offset, hdr.ipv4.ttl, hdr.ipv4.protocol, \
    hdr.ipv4.src, hdr.ipv4.dst

control VerifyChecksums(inout headers_t hdr, inout metadata_t meta) {
    apply {
        verify_checksum(hdr.packet.isValid() && hdr.unit.isValid(), { PACKET_FIELDS, UNIT_FIELDS }, hdr.packet.checksum, HashAlgorithm.csum16);
        verify_checksum(hdr.packet.isValid() && hdr.probe.isValid(), { PACKET_FIELDS }, hdr.packet.checksum, HashAlgorithm.csum16);
        verify_checksum(hdr.packet.isValid(), { IPV4_FIELDS }, hdr.ipv4.checksum, HashAlgorithm.csum16);
    }
}

control ComputeChecksums(inout headers_t hdr, inout metadata_t meta) {
    apply {
        update_checksum(meta.ours == OURS_STRIPE, { PACKET_FIELDS, UNIT_FIELDS }, hdr.packet.checksum, HashAlgorithm.csum16);
        update_checksum(meta.ours == OURS_ANSWER && hdr.probe.isValid(), { PACKET_FIELDS }, hdr.packet.checksum, HashAlgorithm.csum16);
        update_checksum(meta.ours == OURS_STRIPE || (meta.ours == OURS_ANSWER && hdr.probe.isValid()), { IPV4_FIELDS }, hdr.ipv4.checksum, HashAlgorithm.csum16);
    }
}
