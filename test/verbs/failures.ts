/**
 * What goes wrong: peers that die, wires that are cut, adapters that are taken away, memory that may not be locked,
 * processes and threads that end with work in flight. Always an error with a code; never a crash, a hang or a leak.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';
import {
  Access,
  Flag,
  openDevice,
  openVerbsDevice,
  type QueuePair,
  Status,
  statusName,
  type VerbsDevice,
  verbsDevices,
} from 'tartan-rdma';
import { bytesOf, Log } from '../rdma/conformance-world.js';
import { pause } from '../stories/running-cluster.js';
import { ADDRESSES, DEVICE } from './machine.js';

const { SIGNALED } = Flag;
const PEER = join(fileURLToPath(new URL('.', import.meta.url)), '../../../test/verbs', 'peer.mjs');

function sh(command: string): string {
  const done = spawnSync('bash', ['-c', command], { encoding: 'utf8' });
  if (done.status !== 0) throw new Error(`${command}: ${done.status} ${done.stderr}`);
  return done.stdout;
}

async function until(condition: () => boolean, limitMs: number): Promise<boolean> {
  const end = performance.now() + limitMs;
  while (!condition()) {
    if (performance.now() > end) return false;
    await pause(5);
  }
  return true;
}

/** Another process that serves 16 MiB; `line` is what it said: { port, rkey }. */
async function servingPeer(address: string, device: string): Promise<{ port: number; rkey: number; kill(): void }> {
  const child = spawn(process.execPath, [PEER, 'serve', address, device], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [chunk] = (await once(child.stdout, 'data')) as [Buffer];
  return {
    ...(JSON.parse(chunk.toString()) as { port: number; rkey: number }),
    kill: () => {
      child.kill('SIGKILL');
    },
  };
}

/** Connects, and keeps 16 writes of 16 KiB in flight until told otherwise. */
async function stream(
  device: VerbsDevice,
  address: string,
  peer: { port: number; rkey: number },
): Promise<{ qp: QueuePair; log: Log; stop(): void }> {
  const source = device.allocate(1 << 18);
  const qp = await device.connect(address, peer.port);
  const log = new Log();
  log.attach(qp);
  let isOn = true;
  let next = 0;
  const post = (): void => {
    qp.postWrite(next, source, (next % 16) << 14, 1 << 14, peer.rkey, (next % 64) << 14, SIGNALED);
    next++;
  };
  log.on = ({ status }) => {
    if (isOn && status === Status.SUCCESS) post();
  };
  for (let i = 0; i < 16; i++) post();
  device.ring();
  return {
    qp,
    log,
    stop: () => {
      isOn = false;
    },
  };
}

/** The oldest failure has a reason, all others are flushed, in order, each once. */
function endedWell(t: Test, log: Log, oneOf: readonly number[]): void {
  const failed = log.entries.filter(({ status }) => status !== Status.SUCCESS);
  t.equal(log.errors.length, 1, `one error: ${log.errors.join(', ')}`);
  t.equal(failed.length, 16, 'everything outstanding completed');
  t.ok(oneOf.includes(failed[0]?.status ?? -1), `the oldest says ${statusName(failed[0]?.status ?? -1)}`);
  t.ok(
    failed.slice(1).every(({ status }) => status === Status.FLUSHED),
    'the others were flushed',
  );
  t.ok(
    log.entries.every(({ wrId }, i) => wrId === i),
    'in order',
  );
}

export function run(t: Test): void {
  t.test('devices are listed with their attributes', async (t) => {
    const found = verbsDevices().find(({ name }) => name === DEVICE)!;
    t.match(found, { transport: 'ib', ports: [{ port: 1, state: 'active', linkLayer: 'ethernet', activeMtu: 4096 }] });
    t.ok(found.maxQueuePairs > 100 && found.maxRequests >= 128 && found.maxGather >= 2);
    t.ok(found.ports[0]!.gids!.includes(`::ffff:${ADDRESSES[0]}`), 'its addresses');
  });

  t.test('a device is chosen by name, and a wrong name is told', async (t) => {
    const auto = openDevice('auto');
    t.equal(auto.kind, 'verbs', 'auto: verbs first');
    await auto.close();
    const loopback = openDevice('auto', { host: '127.0.0.1' });
    t.equal(loopback.kind, 'soft', 'auto on loopback: no RDMA device is there');
    await loopback.close();
    t.throws(() => openDevice('verbs:mlx9_9'), { code: 'ERR_NO_VERBS', message: /mlx9_9.*rxe0/ });
    const device = openVerbsDevice({ device: DEVICE });
    await t.rejects(
      device.listen('10.79.0.1', 0, () => {}),
      { code: 'ERR_LISTEN', message: /belongs to rxe1/ },
    );
    await t.rejects(
      device.listen('203.0.113.1', 0, () => {}),
      { code: 'ERR_LISTEN', message: /no RDMA device has this address/ },
    );
    await device.close();
  });

  t.test('a peer that is killed with writes in flight', async (t) => {
    const peer = await servingPeer(ADDRESSES[1]!, DEVICE);
    const device = openVerbsDevice({ device: DEVICE });
    t.teardown(() => device.close());
    const { log, qp } = await stream(device, ADDRESSES[1]!, peer);
    t.ok(await until(() => log.entries.length > 32, 20_000), 'writes complete');
    peer.kill();
    t.ok(await until(() => log.entries.filter(({ status }) => status !== 0).length >= 16, 20_000), 'they end');
    endedWell(t, log, [
      Status.RETRY_EXCEEDED,
      Status.FLUSHED,
      Status.REMOTE_ACCESS_ERROR,
      Status.REMOTE_INVALID_REQUEST,
    ]);
    t.equal(qp.state, 'error');
  });

  t.test('a wire that is cut: RETRY_EXCEEDED; when it is whole again, a new connection works', async (t) => {
    const peer = await servingPeer('10.79.0.2', 'rxe2');
    t.teardown(() => {
      peer.kill();
    });
    const device = openVerbsDevice({ device: 'rxe1', ackTimeout: 14 });
    t.teardown(() => device.close());
    const { log } = await stream(device, '10.79.0.2', peer);
    t.ok(await until(() => log.entries.length > 16, 20_000), 'writes complete over the wire');
    sh('ip link set b2 down');
    t.ok(await until(() => log.errors.length > 0, 30_000), 'the cut shows');
    endedWell(t, log, [Status.RETRY_EXCEEDED]);
    await t.rejects(device.connect('10.79.0.2', peer.port, { timeoutMs: 1000 }), { code: 'ERR_CONNECT' });
    sh('ip link set b2 up');
    const again = await stream(device, '10.79.0.2', peer);
    t.ok(await until(() => again.log.entries.length > 16, 20_000), 'writes complete again');
    again.stop();
  });

  t.test('a wire that loses every 50th packet: everything arrives, in order', async (t) => {
    const peer = await servingPeer('10.79.0.2', 'rxe2');
    t.teardown(() => {
      peer.kill();
    });
    const device = openVerbsDevice({ device: 'rxe1', ackTimeout: 14 });
    t.teardown(() => device.close());
    const { log, stop } = await stream(device, '10.79.0.2', peer);
    // Only now: a packet of the connection manager's that is lost comes again after four seconds.
    sh('tc qdisc add dev b1 root netem loss 2%');
    t.teardown(() => {
      sh('tc qdisc del dev b1 root');
    });
    const before = log.entries.length;
    t.ok(await until(() => log.entries.length > before + 100, 40_000), `${log.entries.length - before} writes`);
    t.ok(
      log.entries.every(({ wrId, status }, i) => wrId === i && status === Status.SUCCESS),
      'each once, in order',
    );
    stop();
  });

  t.test('a card that goes down is told as an event of the port', async (t) => {
    const device = openVerbsDevice({ device: 'rxe4' });
    t.teardown(() => device.close());
    const events: string[] = [];
    device.onAsyncEvent = ({ text, port }) => {
      events.push(`${text} ${port}`);
    };
    const listener = await device.listen('10.79.0.4', 0, () => {}); // so that this process waits
    sh('ip link set h4 down');
    t.ok(await until(() => events.length > 0, 10_000), events.join(', '));
    sh('ip link set h4 up');
    t.match(events[0], /port.* 1$/);
    await listener.close();
  });

  t.test('memory that may not be locked is refused, naming `ulimit -l`', async (t) => {
    const code =
      `import('` +
      new URL('../../../rdma/dist/index.js', import.meta.url).pathname +
      `').then(async ({ openVerbsDevice }) => {
      const device = openVerbsDevice({ ` +
      `device: '${DEVICE}' });
      try { device.allocate(8 << 20); } catch (error) { ` +
      `console.log(error.code, error.message); }
      await device.close(); })`;
    const said = sh(
      'chmod a+rw /dev/infiniband/*; ulimit -l 1024; HOME=/tmp setpriv --reuid 65534 --regid 65534 ' +
        `--clear-groups ${process.execPath} -e "${code.replaceAll('\n', ' ')}"`,
    );
    t.match(said, /^ERR_REGISTRATION_REFUSED .*ulimit -l/);
  });

  t.test('more queue pairs than one completion queue holds, each full: none overruns', async (t) => {
    const device = openVerbsDevice({ device: DEVICE });
    t.teardown(() => device.close());
    const target = device.allocate(4096, Access.REMOTE_WRITE);
    const source = device.allocate(4096);
    const received = new Map<number, number>();
    const listener = await device.listen(ADDRESSES[0]!, 0, (qp) => {
      qp.handler = (_, status) => {
        if (status === Status.SUCCESS) received.set(qp.qpn, (received.get(qp.qpn) ?? 0) + 1);
      };
      for (let i = 0; i < 200; i++) qp.postRecv(i, undefined, 0, 0);
    });
    const logs: Log[] = [];
    for (let i = 0; i < 16; i++) {
      const qp = await device.connect(ADDRESSES[0]!, listener.port);
      logs.push(new Log());
      logs[i]!.attach(qp);
      for (let n = 0; n < 200; n++) qp.postWriteWithImm(n, source, 0, 64, target.rkey, 0, n, SIGNALED);
    }
    device.ring();
    t.ok(await until(() => logs.every(({ entries }) => entries.length === 200), 40_000), 'all 3,200 complete');
    t.ok(logs.every(({ entries }) => entries.every(({ wrId, status }, i) => wrId === i && status === Status.SUCCESS)));
    t.ok(
      await until(() => [...received.values()].every((count) => count === 200) && received.size === 16, 20_000),
      'all receives too',
    );
  });

  t.test('a handler that throws ends as an uncaught exception, and the others still run', async (t) => {
    const done = spawnSync(process.execPath, [PEER, 'throw', ADDRESSES[0]!, DEVICE], {
      encoding: 'utf8',
      timeout: 60_000,
    });
    t.equal(done.stdout.trim(), 'caught: a bug of the handler\nstill served');
    t.equal(done.status, 0, done.stderr);
  });

  t.test("a process that exits, at every step of a device's life, with work in flight", async (t) => {
    for (const step of ['opened', 'allocated', 'listening', 'connecting', 'connected', 'writing', 'closing']) {
      const done = spawnSync(process.execPath, [PEER, 'exit', ADDRESSES[0]!, DEVICE, step], {
        encoding: 'utf8',
        timeout: 60_000,
      });
      t.same([done.status, done.signal, done.stderr], [7, null, ''], step);
    }
  });

  t.test("worker threads ended at every step of a device's life, with work in flight", async (t) => {
    for (const step of ['opened', 'allocated', 'listening', 'connecting', 'connected', 'writing', 'closing']) {
      const worker = new Worker(PEER, { argv: ['stay', ADDRESSES[0]!, DEVICE, step], stdout: true });
      await once(worker, 'message');
      t.equal(await worker.terminate(), 1, step);
    }
    const device = openVerbsDevice({ device: DEVICE });
    t.equal(bytesOf(device.allocate(4096))[0], 0, 'the process and its adapter live on');
    await device.close();
  });

  t.test('an adapter that is taken away: connections fail, the device still closes, the process ends', async (t) => {
    const peer = await servingPeer('10.79.0.2', 'rxe2');
    t.teardown(() => {
      peer.kill();
    });
    // A process of its own, and a device that this one never opened: soft-RoCE lets an adapter go only when the last
    // process that opened it has ended.
    const victim = spawn(
      process.execPath,
      [PEER, 'stream', '10.79.0.2', 'rxe3', String(peer.port), String(peer.rkey)],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    let said = '';
    victim.stdout.on('data', (chunk: Buffer) => {
      said += chunk.toString();
    });
    const ended = once(victim, 'exit');
    t.ok(await until(() => said.startsWith('writing\n'), 20_000), 'writes complete');
    const removed = once(spawn('rdma', ['link', 'delete', 'rxe3']), 'exit');
    t.same(await ended, [0, null]);
    t.match(said, /^writing\nthe RDMA device was removed\n16 ended, 16 of them flushed\nclosed\n$/);
    await removed;
    t.throws(() => openVerbsDevice({ device: 'rxe3' }), { code: 'ERR_NO_VERBS' });
    sh('rdma link add rxe3 type rxe netdev h3');
  });
}
