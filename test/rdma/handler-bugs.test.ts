/** A bug in a handler ends the process, with its stack: nothing may live on with an invariant broken. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import t from 'tap';

const WHERE = ['completion', 'connection', 'error', 'batch', 'coding'] as const;

const PROGRAM = `
const { openSoftDevice, Flag } = await import(process.env.RDMA);
const where = process.env.WHERE;
const buggy = (name) => () => { if (name === where) throw new TypeError('bug in ' + name); };
const device = openSoftDevice();
const listener = await device.listen('127.0.0.1', 0, (qp) => {
  buggy('connection')();
  qp.postRecv(1, memory, 0, 64);
});
const memory = device.allocate(4096);
const qp = await device.connect('127.0.0.1', listener.port);
qp.handler = buggy('completion');
qp.onError = buggy('error');
device.onBatchEnd = buggy('batch');
qp.postSend(1, memory, 0, 64, Flag.SIGNALED);
const digest = { payloadCrcOffset: 0, sealOffset: 4, summaryOffset: 8, crcListOffset: 24, dataHeaderBytes: 24 };
const coder = device.createCoder({ k: 1, inputUnits: [0], outputUnits: [], matrix: new Uint8Array(0), digest });
device.createCodingQueue(buggy('coding')).postVerify(1, coder, memory, 0, 24, 64, 64);
device.ring();
setTimeout(() => qp.toError('a test'), 20);
setTimeout(() => process.stdout.write('lives on'), 500);
`;

for (const where of WHERE) {
  t.test(`what a ${where} handler throws ends the process`, async (t) => {
    const child = spawn(process.execPath, ['--input-type=module', '-e', PROGRAM], {
      env: {
        ...process.env,
        NODE_OPTIONS: '',
        WHERE: where,
        RDMA: new URL('../../rdma/dist/index.js', import.meta.url).href,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    const [code] = (await once(child, 'close')) as [number | null];
    t.equal(code, 1);
    t.match(output, new RegExp(`TypeError: bug in ${where}\\n\\s+at `));
    t.notMatch(output, /lives on/);
  });
}
