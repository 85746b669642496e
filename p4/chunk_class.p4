// The class of a program: MAX_K data units at most, chunks of FIELDS × FIELD_BITS bits. p4c takes no field wider than
// 2048 bits, so a chunk is several; EACH_FIELD(DO, c) writes DO(0, c) DO(1, c) … once for each of them.

#if !defined(MAX_K) || !defined(FIELDS) || !defined(FIELD_BITS)
#error "MAX_K, FIELDS and FIELD_BITS are missing: compile with p4/build.mjs"
#endif

#if FIELDS == 1
#define EACH_FIELD(DO, c) DO(0, c)
#elif FIELDS == 2
#define EACH_FIELD(DO, c) DO(0, c) DO(1, c)
#elif FIELDS == 4
#define EACH_FIELD(DO, c) DO(0, c) DO(1, c) DO(2, c) DO(3, c)
#elif FIELDS == 5
#define EACH_FIELD(DO, c) DO(0, c) DO(1, c) DO(2, c) DO(3, c) DO(4, c)
#elif FIELDS == 8
#define EACH_FIELD(DO, c) DO(0, c) DO(1, c) DO(2, c) DO(3, c) DO(4, c) DO(5, c) DO(6, c) DO(7, c)
#elif FIELDS == 16
#define EACH_FIELD(DO, c) DO(0, c) DO(1, c) DO(2, c) DO(3, c) DO(4, c) DO(5, c) DO(6, c) DO(7, c) \
                          DO(8, c) DO(9, c) DO(10, c) DO(11, c) DO(12, c) DO(13, c) DO(14, c) DO(15, c)
#else
#error "FIELDS must be 1, 2, 4, 5, 8 or 16"
#endif

// EACH_UNIT(DO): DO(c) for every data unit of the class; EACH_UNIT_DOWN from the last to the first.
#if MAX_K == 2
#define EACH_UNIT(DO) DO(0) DO(1)
#define EACH_UNIT_DOWN(DO) DO(1) DO(0)
#elif MAX_K == 4
#define EACH_UNIT(DO) DO(0) DO(1) DO(2) DO(3)
#define EACH_UNIT_DOWN(DO) DO(3) DO(2) DO(1) DO(0)
#elif MAX_K == 8
#define EACH_UNIT(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define EACH_UNIT_DOWN(DO) DO(7) DO(6) DO(5) DO(4) DO(3) DO(2) DO(1) DO(0)
#else
#error "MAX_K must be 2, 4 or 8"
#endif

const bit<16> CHUNK_BYTES = FIELDS * FIELD_BITS / 8;
const bit<8> MAX_M = 4;
