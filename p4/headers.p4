// Header layouts. docs/wire-format.md draws those of Tartan; the names are those of wire/packet-header.ts and
// wire/unit-header.ts. A unit header is little-endian and only copied; what is computed with is in packet_header_t.

const bit<16> ETHERTYPE_IPV4 = 0x0800;
const bit<16> ETHERTYPE_ARP = 0x0806;
const bit<8> PROTOCOL_UDP = 17;
const bit<16> STRIPE_PORT = 21586;
const bit<32> PACKET_MAGIC = 0x54525450;  // "TRTP"
const bit<32> UNIT_MAGIC = 0x5452544e;    // "TRTN"
const bit<8> PACKET_FORMAT_VERSION = 1;
const bit<8> UNIT_FORMAT_VERSION = 1;
// Answered to probes: raised with every change of what this program does.
const bit<32> PROGRAM_VERSION = 1;

const bit<8> TYPE_STRIPE = 1;
const bit<8> TYPE_UNIT = 2;
const bit<8> TYPE_PARITY = 3;
const bit<8> TYPE_PROBE = 4;
const bit<8> TYPE_PROBE_ANSWER = 5;

const bit<16> IPV4_BYTES = 20;
const bit<16> UDP_BYTES = 8;
const bit<16> PACKET_HEADER_BYTES = 24;
const bit<16> UNIT_HEADER_BYTES = 88;
const bit<16> DESCRIPTOR_BYTES = 28;
const bit<16> PROBE_BODY_BYTES = 24;
const bit<8> DATA_EXTENSION_WORDS = 6;

header ethernet_t { bit<48> dst; bit<48> src; bit<16> type; }

// RFC 826, for Ethernet and IPv4.
header arp_t {
    bit<16> hardware; bit<16> protocol; bit<8> hardware_bytes; bit<8> protocol_bytes; bit<16> operation;
    bit<48> sender_mac; bit<32> sender_ip; bit<48> target_mac; bit<32> target_ip;
}

// RFC 791.
header ipv4_t {
    bit<4> version; bit<4> header_words; bit<8> tos; bit<16> total_bytes;
    bit<16> identification; bit<3> flags; bit<13> fragment_offset;
    bit<8> ttl; bit<8> protocol; bit<16> checksum;
    bit<32> src; bit<32> dst;
}

// RFC 768.
header udp_t { bit<16> src_port; bit<16> dst_port; bit<16> bytes; bit<16> checksum; }

header packet_header_t {
    bit<32> magic; bit<8> version; bit<8> type; bit<8> k; bit<8> m;
    bit<32> group; bit<32> map_epoch; bit<32> offset; bit<16> chunk_bytes; bit<16> checksum;
}

header unit_header_t {
    bit<32> magic; bit<8> version; bit<8> code; bit<8> k; bit<8> m;
    bit<8> unit; bit<8> lg_unit_bytes; bit<8> flags; bit<8> extension_words; bit<32> cluster;
    bit<64> file; bit<64> stripe;
    bit<32> unit_length; bit<32> stripe_length; bit<32> map_epoch; bit<32> writer_epoch;
    bit<32> counter; bit<32> commit_mark; bit<32> payload_crc; bit<32> seal;
    bit<128> summary;
    bit<64> missing;
}

header descriptor_t { bit<32> unit_length; bit<32> payload_crc; bit<32> seal; bit<128> summary; }

header data_crc_t { bit<32> crc; }

header probe_t { bit<64> nonce; bit<64> cookie; bit<32> program; bit<8> k; bit<8> m; bit<16> chunk_bytes; }

#define CHUNK_FIELD(i, c) bit<FIELD_BITS> f##i;
header chunk_t { EACH_FIELD(CHUNK_FIELD, 0) }

struct headers_t {
    ethernet_t ethernet;
    arp_t arp;
    ipv4_t ipv4;
    udp_t udp;
    packet_header_t packet;
    probe_t probe;
    unit_header_t unit;
    descriptor_t[MAX_K] descriptor;   // come in
    chunk_t[MAX_K] chunk;             // come in
    data_crc_t[MAX_K] data_crc;       // leave, on parity
    chunk_t kept;                     // leaves: the unit that was kept, or the parity
}

const bit<2> OURS_NOT = 0;
const bit<2> OURS_STRIPE = 1;
const bit<2> OURS_ANSWER = 2;   // ARP or probe, already turned round
const bit<2> OURS_REFUSED = 3;  // drop_reason says why

const bit<2> COPY_NONE = 0;
const bit<2> COPY_DATA = 1;
const bit<2> COPY_PARITY = 2;

struct metadata_t {
    bit<2> ours;
    bit<8> drop_reason;
    bit<8> units_left;       // parser: descriptors, then chunks still to come
    bit<32> service_key;     // the address asked for: of IPv4, or of an ARP request
    bit<1> flooded;          // multicast by the bridge: not back to where it came from
    bit<2> copy;
    bit<8> unit;             // of a data copy
    bit<8> row;              // of a parity copy
}
