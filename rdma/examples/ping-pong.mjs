/**
 * Latency: two processes send 64 bytes to and fro.
 *
 *   node ping-pong.mjs serve ADDRESS [DEVICE]
 *   node ping-pong.mjs ADDRESS PORT [DEVICE] [COUNT=10000]
 */
import { Flag, openDevice, Opcode } from 'tartan-rdma';

const BYTES = 64;
const [first, ...rest] = process.argv.slice(2);

/** Calls `onMessage` for each message, which lies in the second half of the region; keeps a receive posted. */
function receive(device, qp, region, onMessage) {
  qp.handler = (opcode, status) => {
    if (opcode !== Opcode.RECV || status !== 0) return;
    qp.postRecv(0, region, BYTES, BYTES);
    onMessage();
  };
  qp.postRecv(0, region, BYTES, BYTES);
  device.ring();
}

if (first === 'serve') {
  const [address = '127.0.0.1', spec = 'auto'] = rest;
  const device = openDevice(spec, { host: address, log: console.error });
  const listener = await device.listen(address, 0, (qp) => {
    const region = device.allocate(2 * BYTES);
    receive(device, qp, region, () => {
      qp.postSend(0, region, 0, BYTES);
    });
    qp.onError = () => {
      void qp.destroy().then(() => region.deregister());
    };
  });
  console.log(`node ping-pong.mjs ${address} ${listener.port} ${spec}`);
} else {
  const [port, spec = 'auto', count = 10_000] = [Number(rest[0]), rest[1], ...rest.slice(2).map(Number)];
  const device = openDevice(spec, { host: first, log: console.error });
  const qp = await device.connect(first, port);
  const region = device.allocate(2 * BYTES);
  const micros = new Float64Array(count);
  let sent = performance.now();
  await new Promise((resolve, reject) => {
    let round = 0;
    qp.onError = (reason) => {
      reject(new Error(reason));
    };
    receive(device, qp, region, () => {
      micros[round++] = (performance.now() - sent) * 1000;
      if (round === count) return resolve();
      sent = performance.now();
      qp.postSend(0, region, 0, BYTES, round % 64 === 0 ? Flag.SIGNALED : 0);
    });
    qp.postSend(0, region, 0, BYTES);
    device.ring();
  });
  micros.sort();
  console.log(
    `${device.kind} ${device.name}: round trip p50 ${micros[count >> 1].toFixed(1)} µs, ` +
      `p99 ${micros[Math.floor(count * 0.99)].toFixed(1)} µs`,
  );
  await device.close();
}
