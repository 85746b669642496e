/**
 * The demo with BMv2 as the switch: a testbed, and in the writer's network a process that tells the story
 * (demo-writer.ts) and asks this one for what happens to the switch and the nodes.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Testbed } from '../testbed/testbed.js';
import { starTopology } from '../testbed/topology.js';

const SCRIPT = fileURLToPath(new URL('./demo-writer.js', import.meta.url));
const RATE_MBIT = 1000;
/** The switch stays dead so long: writers and nodes notice. */
const DEAD_MS = 500;

export type StageVerb = 'unload' | 'load' | 'killSwitch' | 'killNode';
export interface StageRequest {
  readonly id: number;
  readonly verb: StageVerb;
  readonly node?: string;
}
export interface StageReply {
  readonly id: number;
  readonly error?: string;
}

/**
 * @param path  the file to store; default: the node binary
 * @returns the exit status
 * @throws {TestbedError} ERR_NOT_ROOT, ERR_MISSING_PACKAGE, ERR_TESTBED, ERR_INTERRUPTED
 */
export async function demoWithBmv2(path?: string): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), 'tartan-demo-'));
  try {
    return await Testbed.use(
      {
        topology: starTopology({ nodes: 3, rateMbit: RATE_MBIT }),
        durability: 'sync',
        switchKind: 'bmv2',
        code: 'xor(2+1)',
        folder,
      },
      async (testbed) => {
        const verbs: Record<StageVerb, (node: string) => Promise<unknown>> = {
          unload: () => testbed.switch('s1', 'unload'),
          load: () => testbed.switch('s1', 'load'),
          // Nothing else leads to the nodes: a blank one comes in its place, and its agent programs it.
          killSwitch: async () => {
            await testbed.killBmv2();
            await delay(DEAD_MS);
            await testbed.startBmv2();
          },
          killNode: (node) => testbed.kill(node),
        };
        const { NODE_OPTIONS: _, ...env } = process.env;
        const command = [
          'setpriv',
          '--pdeathsig',
          'KILL',
          ...testbed.network.enter('w1'),
          process.execPath,
          '--enable-source-maps',
          SCRIPT,
          testbed.cluster,
          ...(path === undefined ? [] : [path]),
        ];
        const child = spawn(command[0]!, command.slice(1), {
          stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
          env: { ...env, TARTAN_SECRET: readFileSync(testbed.secretFile, 'utf8') },
        });
        child.on('message', ({ id, verb, node = '' }: StageRequest) => {
          verbs[verb](node).then(
            () => {
              child.send({ id } satisfies StageReply);
            },
            (error: unknown) => {
              child.send({ id, error: (error as Error).message } satisfies StageReply);
            },
          );
        });
        return new Promise<number>((resolve, reject) => {
          child.once('error', reject);
          child.once('exit', (code) => {
            resolve(code ?? 1);
          });
        });
      },
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
