// From bytes to headers. Whatever is not a stripe or a probe for port STRIPE_PORT ends early, and what follows stays
// payload: it leaves as it came. Fragments and IPv4 options have no UDP header where this program looks for one.

parser ParityParser(packet_in pkt, out headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    state start {
        pkt.extract(hdr.ethernet);
        transition select(hdr.ethernet.type) {
            ETHERTYPE_IPV4: parse_ipv4;
            ETHERTYPE_ARP: parse_arp;
            default: accept;
        }
    }

    state parse_arp {
        pkt.extract(hdr.arp);
        transition accept;
    }

    state parse_ipv4 {
        pkt.extract(hdr.ipv4);
        transition select(hdr.ipv4.version, hdr.ipv4.header_words, hdr.ipv4.flags & 1, hdr.ipv4.fragment_offset, hdr.ipv4.protocol) {
            (4, 5, 0, 0, PROTOCOL_UDP): parse_udp;
            default: accept;
        }
    }

    state parse_udp {
        pkt.extract(hdr.udp);
        transition select(hdr.udp.dst_port) {
            STRIPE_PORT: parse_magic;
            default: accept;
        }
    }

    state parse_magic {
        transition select(pkt.lookahead<bit<32>>()) {
            PACKET_MAGIC: parse_packet;
            default: accept;
        }
    }

    state parse_packet {
        pkt.extract(hdr.packet);
        transition select(hdr.packet.version, hdr.packet.type) {
            (PACKET_FORMAT_VERSION, TYPE_STRIPE): parse_unit;
            (PACKET_FORMAT_VERSION, TYPE_PROBE): parse_probe;
            default: accept;
        }
    }

    state parse_probe {
        pkt.extract(hdr.probe);
        transition accept;
    }

    // Only what this class can carry is taken apart; Check says what is wrong with the rest.
    state parse_unit {
        pkt.extract(hdr.unit);
        meta.units_left = hdr.packet.k;
        transition select(hdr.packet.k, hdr.packet.chunk_bytes) {
#define PARSE_K(c) (c + 1, CHUNK_BYTES): parse_descriptor;
            EACH_UNIT(PARSE_K)
            default: accept;
        }
    }

    state parse_descriptor {
        pkt.extract(hdr.descriptor.next);
        meta.units_left = meta.units_left - 1;
        transition select(meta.units_left) {
            0: parse_chunks;
            default: parse_descriptor;
        }
    }

    state parse_chunks {
        meta.units_left = hdr.packet.k;
        transition parse_chunk;
    }

    state parse_chunk {
        pkt.extract(hdr.chunk.next);
        meta.units_left = meta.units_left - 1;
        transition select(meta.units_left) {
            0: accept;
            default: parse_chunk;
        }
    }
}
