/**
 * Writes test/golden/md-raid6.json: what a running Linux md RAID-6 put on its members for known data.
 * `node test/golden/md-raid6.mjs` is the command; it starts a virtual machine (testbed/verbs/vm.sh), about 15 s.
 *
 * Each array gets as many full stripes as it has disks, so that md's rotation comes round once. Of every member's chunk
 * the SHA-256 is kept; of the first stripe P and Q themselves, so that a difference can be looked at.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const CHUNK_BYTES = 4096;
const DATA_DISKS = [2, 3, 4];
const root = fileURLToPath(new URL('../..', import.meta.url));

/** As `noise` in generate.ts: x ← 1664525·x + 1013904223 modulo 2^32, its top byte each time. */
function noise(length, seed) {
  let x = seed;
  return Uint8Array.from({ length }, () => (x = (Math.imul(x, 1664525) + 1013904223) >>> 0) >>> 24);
}

function arrayVector(out, k) {
  const disks = k + 2;
  const members = Array.from({ length: disks }, (_, i) => readFileSync(join(out, `member-${k}-${i}`)));
  const chunk = (disk, stripe) => members[disk].subarray(stripe * CHUNK_BYTES, (stripe + 1) * CHUNK_BYTES);
  // In the first stripe of a left-symmetric array Q is on disk 0 and P on the last.
  return {
    dataDisks: k,
    seed: k,
    members: Array.from({ length: disks }, (_, stripe) =>
      members.map((_, disk) => createHash('sha256').update(chunk(disk, stripe)).digest('hex')),
    ),
    firstP: chunk(disks - 1, 0).toString('base64'),
    firstQ: chunk(0, 0).toString('base64'),
  };
}

const out = mkdtempSync(join(tmpdir(), 'md-raid6-'));
try {
  for (const k of DATA_DISKS) writeFileSync(join(out, `data-${k}`), noise(k * (k + 2) * CHUNK_BYTES, k));
  const vm = spawnSync('testbed/verbs/vm.sh', ['bash', 'testbed/verbs/md-raid6.sh'], {
    cwd: root,
    env: { ...process.env, OUT: out, LIMIT: '180', MD_DATA_DISKS: DATA_DISKS.join(' ') },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  if (vm.status !== 0) throw new Error(`the virtual machine ended with ${vm.status}`);
  const vectors = {
    kernel: `Linux ${readFileSync(join(out, 'kernel'), 'utf8').trim()} (Debian), md raid456`,
    command:
      'mdadm --create /dev/mdK --level=6 --raid-devices=K+2 --chunk=4 --layout=left-symmetric --metadata=1.0 ' +
      '--bitmap=none; resynced, written with O_DIRECT, stopped',
    data:
      'x starts as the seed; x = 1664525 x + 1013904223 modulo 2^32, the top byte of x each time; written from ' +
      "the array's first byte",
    members: "SHA-256 of each member's chunk: one row for each stripe, one entry for each disk",
    chunkBytes: CHUNK_BYTES,
    arrays: DATA_DISKS.map((k) => arrayVector(out, k)),
  };
  writeFileSync(new URL('md-raid6.json', import.meta.url), `${JSON.stringify(vectors, undefined, 1)}\n`);
} finally {
  rmSync(out, { recursive: true });
}
