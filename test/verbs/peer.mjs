/**
 * The other processes and threads of the verbs device's failure tests: `node peer.mjs ROLE ADDRESS DEVICE [STEP | PORT
 * RKEY]`.
 *
 *   serve   listens, grants 16 MiB, prints {"port","rkey"}, lives until it is killed
 *   throw   a handler throws once; prints what the process caught, and that completions go on
 *   stream  connects to PORT and keeps 16 writes in flight until they fail; prints how, closes its device
 *   exit    exits with status 7 at STEP of a device's life
 *   stay    as a worker: sends a message at STEP, and waits to be terminated
 */
import { parentPort } from 'node:worker_threads';
import { Access, Flag, openVerbsDevice, Status } from '../../rdma/dist/index.js';

const [role, address, name, wanted] = process.argv.slice(2);

if (role === 'serve') {
  const device = openVerbsDevice({ device: name });
  const region = device.allocate(16 << 20, Access.REMOTE_WRITE | Access.REMOTE_READ);
  const listener = await device.listen(address, 0, (qp) => {
    qp.onError = () => {
      void qp.destroy();
    };
  });
  process.stdout.write(`${JSON.stringify({ port: listener.port, rkey: region.rkey })}\n`);
} else if (role === 'throw') {
  const device = openVerbsDevice({ device: name });
  process.on('uncaughtException', (error) => {
    process.stdout.write(`caught: ${error.message}\n`);
  });
  const region = device.allocate(4096, Access.REMOTE_WRITE);
  const listener = await device.listen(address, 0, () => {});
  const qp = await device.connect(address, listener.port);
  let served = 0;
  qp.handler = () => {
    if (served++ === 0) throw new Error('a bug of the handler');
    process.stdout.write('still served\n');
    void device.close();
  };
  for (let i = 0; i < 2; i++) {
    qp.postWrite(i, region, 0, 64, region.rkey, 64, Flag.SIGNALED);
    device.ring();
  }
} else if (role === 'stream') {
  const device = openVerbsDevice({ device: name, ackTimeout: 14 });
  const region = device.allocate(1 << 18);
  const [port, rkey] = process.argv.slice(5).map(Number);
  const qp = await device.connect(address, port);
  let completed = 0;
  const failed = [];
  const post = (id) => {
    qp.postWrite(id, region, id << 14, 1 << 14, rkey, id << 14, Flag.SIGNALED);
  };
  qp.onError = (reason) => {
    process.stdout.write(`${reason}\n`);
  };
  qp.handler = (opcode, status, wrId) => {
    if (status === 0) {
      if (++completed === 32) process.stdout.write('writing\n');
      post(wrId);
    } else if (failed.push(status) === 16) {
      process.stdout.write(`16 ended, ${failed.filter((each) => each === Status.FLUSHED).length} of them flushed\n`);
      void device.close().then(() => {
        process.stdout.write('closed\n');
      });
    }
  };
  for (let i = 0; i < 16; i++) post(i);
  device.ring();
} else {
  await live();
}

/** Walks through a device's life and stops at the step that is wanted. */
async function live() {
  const at = async (step) => {
    if (step !== wanted) return;
    if (role === 'exit') process.exit(7);
    parentPort.postMessage(step);
    await new Promise((resolve) => {
      setTimeout(resolve, 60_000);
    });
  };
  const device = openVerbsDevice({ device: name });
  await at('opened');
  const region = device.allocate(1 << 20, Access.REMOTE_WRITE);
  await at('allocated');
  const listener = await device.listen(address, 0, (qp) => {
    for (let i = 0; i < 64; i++) qp.postRecv(i, region, 0, 64);
  });
  await at('listening');
  const connecting = device.connect(address, listener.port);
  await at('connecting');
  const qp = await connecting;
  await at('connected');
  qp.handler = (opcode, status, wrId) => {
    if (status !== 0) return;
    qp.postWrite(wrId, region, 0, 1 << 16, region.rkey, 1 << 16, Flag.SIGNALED);
  };
  for (let i = 0; i < 32; i++) qp.postWrite(i, region, 0, 1 << 16, region.rkey, 1 << 16, Flag.SIGNALED);
  device.ring();
  await at('writing');
  void device.close();
  await at('closing');
}
