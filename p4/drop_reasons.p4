// Why a packet ends here: indexes of the counters ingress_drops and egress_drops. docs/wire-format.md explains them,
// wire/packet-header.ts has the same numbers. Never reuse one.

const bit<8> DROP_SHORT = 1;
const bit<8> DROP_VERSION = 2;
const bit<8> DROP_TYPE = 3;
const bit<8> DROP_SHAPE = 4;
const bit<8> DROP_CLASS = 5;
const bit<8> DROP_LENGTH = 6;
const bit<8> DROP_CHECKSUM = 7;
const bit<8> DROP_GROUP = 8;
const bit<8> DROP_MAP_EPOCH = 9;
const bit<8> DROP_GROUP_SHAPE = 10;
const bit<32> DROP_NO_REPLICA = 11;
const bit<8> DROP_NO_ROUTE = 12;
const bit<8> DROP_TTL = 13;

const bit<32> DROP_REASONS = 32;  // room for more; index 0 stays 0
