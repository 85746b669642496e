/**
 * What bench:verbs runs inside User-Mode Linux: our writes beside the C loop's (loop.c), to the same server, on the
 * same device, in turns of the same run. `node bench.mjs LOOP [--seconds 0.4] [--rounds 7]`.
 *
 * A round is one turn of each; a ratio is taken within a round, and the median of the rounds is told with the range,
 * since the machine is shared and one processor runs it all. Both look for completions without sleeping (ours:
 * busyPollMicros).
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { Flag, openVerbsDevice } from '../../rdma/dist/index.js';

const ADDRESS = '10.77.0.1';
const {
  values,
  positionals: [loop],
} = parseArgs({
  allowPositionals: true,
  options: { seconds: { type: 'string', default: '0.4' }, rounds: { type: 'string', default: '7' } },
});
const SECONDS = Number(values.seconds);
const ROUNDS = Number(values.rounds);
const KIB = 1024;
const SIZES = [4, 16, 64, 256, 1024].map((kib) => kib * KIB);
const REGION_BYTES = 16 << 20;

const median = (numbers) => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)];
const range = (numbers, digits) => `${Math.min(...numbers).toFixed(digits)}-${Math.max(...numbers).toFixed(digits)}`;
const say = (line) => {
  process.stdout.write(`${line}\n`);
};

const server = spawn(loop, ['serve', ADDRESS], { stdio: ['ignore', 'pipe', 'inherit'] });
const { port, rkey } = JSON.parse((await once(createInterface(server.stdout), 'line'))[0]);

/** The C loop, connected; each call is one turn. */
async function yardstick(bytes, window, waits) {
  const child = spawn(loop, ['write', ADDRESS, String(port), String(rkey), String(bytes), String(window), waits], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const lines = createInterface(child.stdout);
  return {
    turn: async () => {
      child.stdin.write(`${SECONDS}\n`);
      return JSON.parse((await once(lines, 'line'))[0]);
    },
    end: async () => {
      const ended = once(child, 'exit');
      child.stdin.end();
      await ended;
    },
  };
}

/** The same through the device: a handler posts the next write, the device rings once a batch. */
async function ours(bytes, window, waits) {
  const device = openVerbsDevice({ device: 'rxe0', busyPollMicros: waits === 'poll' ? 200 : 0 });
  const region = device.allocate(REGION_BYTES);
  const qp = await device.connect(ADDRESS, port);
  const slots = REGION_BYTES / bytes;
  return {
    turn: () =>
      new Promise((resolve, reject) => {
        let posted = 0;
        let done = 0;
        let isOver = false;
        const begin = performance.now();
        const post = () => {
          const at = (posted % slots) * bytes;
          qp.postWrite(posted++, region, at, bytes, rkey, at, Flag.SIGNALED);
        };
        qp.handler = (opcode, status) => {
          if (status !== 0) return reject(new Error(`status ${status}`));
          done++;
          if (!isOver) post();
          else if (done === posted) resolve({ seconds: (performance.now() - begin) / 1000, count: done });
        };
        device.onBatchEnd = () => {
          if (performance.now() - begin >= SECONDS * 1000) isOver = true;
        };
        for (let i = 0; i < window; i++) post();
        device.ring();
      }),
    end: () => device.close(),
  };
}

async function compare(bytes, window, waits) {
  const [mine, its] = [await ours(bytes, window, waits), await yardstick(bytes, window, waits)];
  const rounds = [];
  await mine.turn();
  await its.turn();
  for (let round = 0; round < ROUNDS; round++)
    rounds.push(
      round % 2 === 0 ? [await mine.turn(), await its.turn()] : [await its.turn(), await mine.turn()].reverse(),
    );
  await mine.end();
  await its.end();
  return rounds;
}

say(`bandwidth, WRITE, 16 in flight, both polling: median of ${ROUNDS} rounds of ${SECONDS} s`);
say('   bytes   ours MB/s      C MB/s   ours ÷ C (range)');
for (const bytes of SIZES) {
  const rounds = await compare(bytes, 16, 'poll');
  const rate = ({ seconds, count }) => (count * bytes) / seconds / 1e6;
  const ratios = rounds.map(([a, b]) => rate(a) / rate(b));
  say(
    `${String(bytes).padStart(8)} ${median(rounds.map(([a]) => rate(a)))
      .toFixed(1)
      .padStart(11)} ${median(rounds.map(([, b]) => rate(b)))
      .toFixed(1)
      .padStart(11)}   ${median(ratios).toFixed(2)} (${range(ratios, 2)})`,
  );
}

for (const waits of ['poll', 'event']) {
  say(
    `latency, WRITE, 1 in flight, ${waits === 'poll' ? 'both polling' : 'both sleeping until an event'}: µs ` +
      'from post to completion',
  );
  say('   bytes     ours µs        C µs   C ÷ ours (range)');
  for (const bytes of SIZES) {
    const rounds = await compare(bytes, 1, waits);
    const micros = ({ seconds, count }) => (seconds / count) * 1e6;
    const ratios = rounds.map(([a, b]) => micros(b) / micros(a));
    say(
      `${String(bytes).padStart(8)} ${median(rounds.map(([a]) => micros(a)))
        .toFixed(1)
        .padStart(11)} ${median(rounds.map(([, b]) => micros(b)))
        .toFixed(1)
        .padStart(11)}   ${median(ratios).toFixed(2)} (${range(ratios, 2)})`,
    );
  }
}

say('registration: allocate() and deregister() beside sending the same bytes once, median of 9');
say('   bytes  allocate µs   deregister µs   one WRITE µs');
{
  const device = openVerbsDevice({ device: 'rxe0', busyPollMicros: 200 });
  const source = device.allocate(REGION_BYTES);
  const qp = await device.connect(ADDRESS, port);
  for (const bytes of [...SIZES, 4 << 20, 16 << 20, 64 << 20, 256 << 20]) {
    const [made, gone, sent] = [[], [], []];
    for (let i = 0; i < 9; i++) {
      let begin = performance.now();
      const region = device.allocate(bytes, 3);
      made.push((performance.now() - begin) * 1000);
      begin = performance.now();
      await region.deregister();
      gone.push((performance.now() - begin) * 1000);
      if (bytes > REGION_BYTES) continue;
      begin = performance.now();
      await new Promise((resolve) => {
        qp.handler = resolve;
        qp.postWrite(i, source, 0, bytes, rkey, 0, Flag.SIGNALED);
        device.ring();
      });
      sent.push((performance.now() - begin) * 1000);
    }
    say(
      `${String(bytes).padStart(9)} ${median(made).toFixed(0).padStart(11)} ` +
        `${median(gone).toFixed(0).padStart(15)} ` +
        (sent.length > 0 ? median(sent).toFixed(0) : '-').padStart(14),
    );
  }
  await device.close();
}
server.kill('SIGKILL');
