/**
 * One transfer in a process of its own, so that the bench only measures; prints a line of JSON.
 * `transfer.js put|get CLUSTER NAME BYTES tcp|shm auto|host any|hashed`
 */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { connect } from '../../writer/index.js';

const [verb, cluster, name, bytesText, transport, parity, content] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  'tcp' | 'shm',
  'auto' | 'host',
  'any' | 'hashed',
];
const bytes = Number(bytesText);
const hash = content === 'hashed' ? createHash('sha256') : undefined;
const client = await connect({ cluster, transport, parity });
const cpu = process.cpuUsage();
let seconds = 0,
  redriven = 0,
  degraded = 0,
  checksumFailures = 0;
if (verb === 'put') {
  const writer = await client.create(name);
  const state = new Uint32Array([0x9e3779b9]);
  const begin = performance.now();
  for (let left = bytes; left > 0; ) {
    // Filled in place by whoever has the data: for a rate it is whatever the ring holds, as in the yardstick.
    const { view, commit } = writer.reserve(left);
    if (view.length === 0) {
      await once(writer, 'drain');
      continue;
    }
    if (hash !== undefined) {
      fill(view, state);
      hash.update(view);
    }
    commit(view.length);
    left -= view.length;
  }
  await new Promise<void>((resolve, reject) => {
    writer.once('error', reject);
    writer.once('finish', resolve);
    writer.end();
  });
  seconds = (performance.now() - begin) / 1000;
  redriven = writer.progress.stripesRedriven;
} else {
  const reader = await client.open(name);
  const begin = performance.now();
  let length = 0;
  for await (const chunk of reader.stream()) {
    length += (chunk as Buffer).length;
    hash?.update(chunk as Buffer);
  }
  if (length !== bytes) throw new Error(`read ${length} of ${bytes} bytes`);
  seconds = (performance.now() - begin) / 1000;
  ({ degradedStripes: degraded, checksumFailures } = reader.progress);
}
const used = process.cpuUsage(cpu);
await client.close();
process.stdout.write(
  `${JSON.stringify({
    mbPerS: bytes / seconds / 1e6,
    cpuSeconds: (used.user + used.system) / 1e6,
    redriven,
    degraded,
    checksumFailures,
    sha256: hash?.digest('hex') ?? '',
  })}\n`,
);

/** Pseudo-random bytes (xorshift32), going on where `state` stopped: no two units are alike. */
function fill(view: Uint8Array, state: Uint32Array): void {
  let x = state[0]!;
  for (let i = 0; i < view.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    view[i] = x;
  }
  state[0] = x;
}
