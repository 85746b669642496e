/** What a request raises is refused with a code, or ends the process on purpose. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import t from 'tap';
import { RdmaError } from 'tartan-rdma';
import { CodeError } from '../../erasure/code/index.js';
import { LayoutError } from '../../erasure/layout/index.js';
import { OperatingError, TartanError } from '../../wire/errors.js';
import { answerOrRefuse, refusalOf } from '../../wire/front-door.js';

const dist = (path: string): string => new URL(`../../dist/${path}`, import.meta.url).href;

function systemError(): Error {
  return Object.assign(new Error('ENOSPC'), { code: 'ENOSPC', errno: -28, syscall: 'write' });
}

t.test(
  'operating errors of all folders, and allocations that fail, are refused with a code; bugs are not',
  async (t) => {
    const told = (error: unknown): string | undefined => refusalOf(error)?.code;
    t.equal(told(new TartanError('ERR_DISK', 'x')), 'ERR_DISK');
    t.equal(told(new OperatingError('ERR_ELSE', 'x')), 'ERR_ELSE');
    t.equal(told(new RdmaError('ERR_REGISTRATION_REFUSED', 'x')), 'ERR_REGISTRATION_REFUSED');
    t.equal(told(new CodeError('ERR_UNKNOWN_CODE', 'x')), 'ERR_UNKNOWN_CODE');
    t.equal(told(new LayoutError('ERR_UNIT_BYTES', 'x')), 'ERR_UNIT_BYTES');
    t.equal(told(systemError()), 'ENOSPC');
    t.equal(told(new RangeError('Array buffer allocation failed')), 'ERR_CAPACITY');
    t.equal(told(Object.assign(new Error('no memory'), { code: 'ERR_NO_MEMORY' })), 'ERR_CAPACITY');
    for (const bug of [new TypeError('x'), new RangeError('Invalid typed array length: -1'), 'text', undefined, null])
      t.equal(told(bug), undefined);
  },
);

t.test('a handler may answer or raise, at once or later', async (t) => {
  const refuse = ({ code }: { code: string }): string => code;
  const error = new TartanError('ERR_DISK', 'x');
  t.equal(await answerOrRefuse(() => 'done', refuse), 'done');
  t.equal(await answerOrRefuse(async () => 'done', refuse), 'done');
  t.equal(
    await answerOrRefuse(() => {
      throw error;
    }, refuse),
    'ERR_DISK',
  );
  t.equal(await answerOrRefuse(() => Promise.reject(error), refuse), 'ERR_DISK');
});

/** What runs in a process of its own: it serves, asks itself, and says so if it lives on. */
const PROGRAMS: Readonly<Record<string, string>> = {
  'a control call': `
    const { serveControl, SwitchControl } = await import(process.env.CONTROL);
    const load = () => { throw new TypeError('bug in the door') };
    const server = await serveControl({ host: '127.0.0.1', port: 0, services: { switch: { load } } });
    await new SwitchControl('127.0.0.1', server.port).load('x').catch(() => {});`,
  'a request for metrics': `
    const { serveMetrics } = await import(process.env.METRICS);
    const server = await serveMetrics(() => { throw new TypeError('bug in the door') }, '127.0.0.1', 0);
    await fetch('http://127.0.0.1:' + server.port + '/metrics').catch(() => {});`,
  'work that nobody awaits': `
    const { detach } = await import(process.env.DOOR);
    detach((async () => { throw new TypeError('bug in the door') })());
    // Whoever is not ended by the bug lives on, and says so.
    await new Promise((resolve) => setTimeout(resolve, 1000));`,
};

/** Runs a program with doors of the compiled form. @returns its exit status and all that it said */
async function run(program: string, shell?: string): Promise<{ code: number | null; output: string }> {
  const args = ['--input-type=module', '-e', program];
  const env = {
    ...process.env,
    NODE_OPTIONS: '',
    CONTROL: dist('wire/control.js'),
    METRICS: dist('switch-agent/metrics.js'),
    DOOR: dist('wire/front-door.js'),
  };
  const child =
    shell === undefined
      ? spawn(process.execPath, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
      : spawn('sh', ['-c', `${shell}; exec "$0" "$@"`, process.execPath, ...args], {
          env,
          stdio: ['ignore', 'pipe', 'pipe'],
        });
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, output };
}

for (const [door, program] of Object.entries(PROGRAMS)) {
  t.test(`a bug behind ${door} ends the process, with its stack in the log`, async (t) => {
    const { code, output } = await run(`
      const { endOnBugs } = await import(process.env.DOOR);
      endOnBugs((line) => process.stderr.write('LOG ' + line + '\\n'));
      ${program}
      await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
      process.stdout.write('lives on');`);
    t.equal(code, 1);
    t.match(output, /LOG a bug, this process ends: TypeError: bug in the door\n\s+at /);
    t.notMatch(output, /lives on/);
  });
}

t.test('a crowd that takes all descriptors costs the process nothing but them', async (t) => {
  const { code, output } = await run(
    `
    import { connect } from 'node:net';
    import { fork } from 'node:child_process';
    const { serveControl, NodeControl } = await import(process.env.CONTROL);
    const { serveMetrics } = await import(process.env.METRICS);
    const said = { id: 'n1', state: 'up', version: '1', mapEpoch: 0, ringMemoryUsed: 0, ringMemoryLimit: 0 };
    const node = { status: () => ({ ...said, counters: {} }) };
    const control = await serveControl({ host: '127.0.0.1', port: 0, services: { node } });
    const metrics = await serveMetrics(() => ({ answers: 42 }), '127.0.0.1', 0);
    // In this process, so that both ends of each connection take a descriptor: soon there is none left.
    const crowd = [];
    let settled = 0, failed = 0;
    await new Promise((resolve) => {
      const more = () => { if (++settled === 400) resolve(); };
      for (let i = 0; i < 400; i++) {
        const socket = connect(i % 2 ? control.port : metrics.port, '127.0.0.1');
        socket.once('connect', more);
        socket.once('error', () => { failed++; more(); });
        crowd.push(socket);
      }
    });
    for (const socket of crowd) socket.on('error', () => {});
    const gone = (socket) => socket.closed || new Promise((resolve) => socket.once('close', resolve));
    const closed = Promise.all(crowd.map(gone));
    for (const socket of crowd) socket.destroy();
    await closed;
    const client = new NodeControl('127.0.0.1', control.port);
    const { id } = await client.status();
    const text = await (await fetch('http://127.0.0.1:' + metrics.port + '/metrics')).text();
    process.stdout.write('failed ' + (failed > 0) + ' serves ' + id + ' ' + /answers 42/.test(text));
    process.exit(0);`,
    'ulimit -n 80',
  );
  t.match(output, /failed true serves n1 true/);
  t.equal(code, 0);
});
