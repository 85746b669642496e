/**
 * Write bandwidth between two processes, like perftest's ib_write_bw.
 *
 *   node bandwidth.mjs serve ADDRESS [DEVICE]
 *   node bandwidth.mjs ADDRESS PORT RKEY [DEVICE] [BYTES=65536] [IN_FLIGHT=16] [SECONDS=2]
 *
 * DEVICE: soft, verbs, verbs:NAME or auto (default). `serve` prints the line that the other process is to be started
 * with.
 */
import { Access, Flag, openDevice, statusName } from 'tartan-rdma';

const REGION_BYTES = 64 << 20;
const [first, ...rest] = process.argv.slice(2);

if (first === 'serve') {
  const [address = '127.0.0.1', spec = 'auto'] = rest;
  const device = openDevice(spec, { host: address, log: console.error });
  const region = device.allocate(REGION_BYTES, Access.REMOTE_WRITE);
  const listener = await device.listen(address, 0, (qp) => {
    qp.onError = () => {
      void qp.destroy();
    };
  });
  console.log(`node bandwidth.mjs ${address} ${listener.port} ${region.rkey} ${spec}`);
} else {
  const [port, rkey] = rest.map(Number);
  const [spec = 'auto', bytes = 65536, window = 16, seconds = 2] = [rest[2], ...rest.slice(3).map(Number)];
  const device = openDevice(spec, { host: first, log: console.error });
  const region = device.allocate(REGION_BYTES);
  const qp = await device.connect(first, port);
  const slots = Math.floor(REGION_BYTES / bytes);
  const begin = performance.now();
  let posted = 0;
  let done = 0;
  const post = () => {
    const at = (posted++ % slots) * bytes;
    qp.postWrite(0, region, at, bytes, rkey, at, Flag.SIGNALED);
  };
  await new Promise((resolve, reject) => {
    qp.handler = (opcode, status) => {
      if (status !== 0) return reject(new Error(statusName(status)));
      done++;
      if (performance.now() - begin < seconds * 1000) post();
      else if (done === posted) resolve();
    };
    for (let i = 0; i < window; i++) post();
    device.ring();
  });
  const elapsed = (performance.now() - begin) / 1000;
  console.log(
    `${device.kind} ${device.name}: ${((done * bytes) / elapsed / 1e6).toFixed(1)} MB/s, ${bytes} bytes ` +
      `each, ${window} in flight`,
  );
  await device.close();
}
