/** Child processes of tests: started, read line by line, always ended. */
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

export interface Child {
  readonly pid: number;
  /** The next line it prints; rejects when it ends first. */
  line(): Promise<string>;
  /** All lines printed and not yet taken. */
  rest(): string[];
  /** Resolves with the exit status, or the signal's name. */
  readonly ended: Promise<number | string>;
  signal(name: NodeJS.Signals): void;
  kill(): Promise<void>;
}

/** Runs a TypeScript file beside this one. */
export function startChild(file: string, args: readonly string[]): Child {
  const child = spawn(process.execPath, ['--import', 'tsx', fileURLToPath(new URL(file, import.meta.url)), ...args], {
    // The test runner's own loader is not for children.
    env: { ...process.env, NODE_OPTIONS: '' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const lines: string[] = [],
    waiting: { resolve: (line: string) => void; reject: (error: Error) => void }[] = [];
  let isEnded = false;
  const reader = createInterface(child.stdout);
  reader.on('line', (line) => {
    const next = waiting.shift();
    if (next) next.resolve(line);
    else lines.push(line);
  });
  const drained = new Promise<void>((resolve) => {
    reader.once('close', resolve);
  });
  const ended = new Promise<number | string>((resolve) => {
    child.once('exit', (code, signal) => {
      void drained.then(() => {
        isEnded = true;
        for (const { reject } of waiting.splice(0)) reject(new Error(`the child ended (${code ?? signal})`));
        resolve(code ?? signal ?? 'unknown');
      });
    });
  });
  return {
    pid: child.pid ?? 0,
    line: () =>
      new Promise((resolve, reject) => {
        const line = lines.shift();
        if (line !== undefined) resolve(line);
        else if (isEnded) reject(new Error('the child has ended'));
        else waiting.push({ resolve, reject });
      }),
    rest: () => lines.splice(0),
    ended,
    signal: (name) => {
      child.kill(name);
    },
    kill: async () => {
      child.kill('SIGKILL');
      await ended;
    },
  };
}
