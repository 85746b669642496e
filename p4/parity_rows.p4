// Parity row r is the sum over data units c of 2^(r·c) · data[c] in GF(2^8), polynomial 0x11d. By Horner, from the last
// unit to the first:
//
//     kept = data[k-1]
//     kept = 2^r · kept + data[c]        for c = k-2 … 0
//
// Multiplying by 2^r is doubling r times. Doubling works on all bytes of a wide field at once: shift left, and where a
// bit fell out of a byte, add 0x1d = 1 + 4 + 8 + 16. The summary, 16 bytes, goes the same way: it is linear.

// 0x01 in every byte.
const bit<FIELD_BITS> LOW_BITS = (bit<FIELD_BITS>) ((((1 << (FIELD_BITS - 1)) - 1) * 2 + 1) / 255);
const bit<FIELD_BITS> ALL_BUT_LOW_BITS = ~LOW_BITS;
const bit<128> SUMMARY_LOW_BITS = 0x01010101010101010101010101010101;

control ParityRow(inout headers_t hdr, inout metadata_t meta) {
#define DOUBLE_FIELD(i, c) fallen = (hdr.kept.f##i >> 7) & LOW_BITS; \
        hdr.kept.f##i = ((hdr.kept.f##i << 1) & ALL_BUT_LOW_BITS) ^ fallen ^ (fallen << 2) ^ (fallen << 3) ^ (fallen << 4);
    action double() {
        bit<FIELD_BITS> fallen;
        EACH_FIELD(DOUBLE_FIELD, 0)
        bit<128> lost = (hdr.unit.summary >> 7) & SUMMARY_LOW_BITS;
        hdr.unit.summary = ((hdr.unit.summary << 1) & ~SUMMARY_LOW_BITS) ^ lost ^ (lost << 2) ^ (lost << 3) ^ (lost << 4);
    }

#define ADD_FIELD(i, c) hdr.kept.f##i = hdr.kept.f##i ^ hdr.chunk[c].f##i;
#define UNIT_ACTIONS(c) \
    action begin_##c() { \
        hdr.kept = hdr.chunk[c]; \
        hdr.unit.summary = hdr.descriptor[c].summary; \
    } \
    action add_##c() { \
        EACH_FIELD(ADD_FIELD, c) \
        hdr.unit.summary = hdr.unit.summary ^ hdr.descriptor[c].summary; \
    } \
    action list_##c() { \
        hdr.data_crc[c].setValid(); \
        hdr.data_crc[c].crc = hdr.descriptor[c].payload_crc; \
    }
    EACH_UNIT(UNIT_ACTIONS)

    apply {
#define HORNER_STEP(c) \
        if (hdr.packet.k == c + 1) { begin_##c(); } \
        else if (hdr.packet.k > c) { \
            if (meta.row >= 1) { double(); } \
            if (meta.row >= 2) { double(); } \
            if (meta.row >= 3) { double(); } \
            add_##c(); \
        }
        EACH_UNIT_DOWN(HORNER_STEP)

        hdr.packet.type = TYPE_PARITY;
        hdr.unit.extension_words = DATA_EXTENSION_WORDS + hdr.packet.k;
        hdr.unit.unit_length = hdr.descriptor[0].unit_length;
#define LIST(c) if (hdr.packet.k > c) { list_##c(); }
        EACH_UNIT(LIST)
    }
}
