/** Erasure codes over GF(2^8): names, matrices, decode plans, the reference coder, and digests. */
export { CodeError, TooManyErasuresError, type CodeErrorCode } from './errors.js';
export { parseCode, codeFromWire, makeCode, type Code, type CodeKind } from './code.js';
export { MAX_DATA_UNITS, MAX_PARITY_UNITS } from './matrix.js';
export { decodePlan, type DecodePlan } from './decode-plan.js';
export { encode, multiply, reconstruct } from './reference.js';
export { crc32c } from './crc32c.js';
export { summary, SUMMARY_BYTES } from './summary.js';
