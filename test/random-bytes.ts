/**
 * Bytes that tests write and read back. They are drawn from a seed that is printed, so that what was found with them
 * can be found again: TARTAN_SEED sets it.
 */
import { createCipheriv, createHash } from 'node:crypto';

const seed = process.env['TARTAN_SEED'] ?? String(Date.now() % 1_000_000);
process.stdout.write(`# random bytes from TARTAN_SEED=${seed}\n`);

const key = createHash('sha256').update(seed).digest().subarray(0, 16);
const stream = createCipheriv('aes-128-ctr', key, Buffer.alloc(16));

/** The next `length` bytes of the seed's stream. */
export function randomBytes(length: number): Buffer<ArrayBuffer> {
  return Buffer.from(stream.update(Buffer.alloc(length)));
}
