/**
 * The other process of the soft device's tests: `node soft-peer.mjs <role>`.
 *
 *   serve                               listens, grants 16 MiB, keeps 256 receives posted; prints {"port","rkey"}
 *   write <port> <rkey> <transport> <bytes each> <window> <count>
 *                                       keeps `window` WRITE_WITH_IMM in flight; prints {"seconds"} and exits; count 0:
 *                                       for ever
 */
import { parentPort } from 'node:worker_threads';
import { Access, Flag, openSoftDevice } from '../../rdma/dist/index.js';

const [role, ...rest] = process.argv.slice(2);
const device = openSoftDevice({ name: role });

if (role === 'serve') {
  const region = device.allocate(16 << 20, Access.REMOTE_WRITE | Access.REMOTE_READ);
  const listener = await device.listen('127.0.0.1', 0, (qp) => {
    let open = true;
    qp.handler = () => {
      if (open) qp.postRecv(0, undefined, 0, 0);
    };
    qp.onError = () => {
      open = false;
      void qp.destroy();
    };
    for (let i = 0; i < 256; i++) qp.postRecv(i, undefined, 0, 0);
    device.ring();
  });
  process.stdout.write(`${JSON.stringify({ port: listener.port, rkey: region.rkey })}\n`);
} else {
  const [port, rkey, , bytes, window, count] = rest.map(Number);
  const region = device.allocate(bytes * window);
  const qp = await device.connect('127.0.0.1', port, { transport: rest[2] });
  let posted = 0;
  let done = 0;
  const slots = Math.floor((16 << 20) / bytes);
  const begin = process.hrtime.bigint();
  const post = () => {
    qp.postWriteWithImm(
      posted,
      region,
      (posted % window) * bytes,
      bytes,
      rkey,
      (posted % slots) * bytes,
      posted >>> 0,
      Flag.SIGNALED,
    );
    posted++;
  };
  const finished = new Promise((resolve) => {
    qp.handler = (opcode, status) => {
      if (status !== 0) process.exit(3);
      done++;
      if (done === 100) parentPort?.postMessage('writing');
      if (count === 0 || posted < count) post();
      else if (done === count) resolve(undefined);
    };
  });
  for (let i = 0; i < window; i++) post();
  device.ring();
  await finished;
  process.stdout.write(
    `${JSON.stringify({ seconds: Number(process.hrtime.bigint() - begin) / 1e9, counters: device.counters() })}\n`,
  );
  await device.close();
}
