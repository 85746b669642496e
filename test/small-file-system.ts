/** File systems that tests fill: small ones, in a mount namespace of their own, which only root may make. */
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, writeSync } from 'node:fs';

/** Whether this process may mount where nobody else sees it. */
export function mayMount(): boolean {
  return process.getuid?.() === 0 && spawnSync('unshare', ['-m', 'true'], { stdio: 'ignore' }).status === 0;
}

/** Writes a file until not a byte more goes in. */
export function fillUp(path: string): void {
  const file = openSync(path, 'w');
  try {
    for (let bytes = 4 << 20; bytes >= 1; ) {
      try {
        if (writeSync(file, Buffer.alloc(bytes, 1)) === 0) return;
      } catch {
        bytes >>= 2;
      }
    }
  } finally {
    closeSync(file);
  }
}
