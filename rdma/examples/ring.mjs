/**
 * A ring buffer between two processes: the receiver owns SLOTS slots, grants them once, and gives each back as a
 * credit; the sender writes with immediate, the slot's number. No byte is copied, no slot is written before it was
 * given back.
 *
 *   node ring.mjs receive ADDRESS [DEVICE]       prints the line to start the other with
 *   node ring.mjs ADDRESS PORT [DEVICE] [MESSAGES=1000]
 *
 * Both sides: a receive for each message that may come. The grant and the credits are SENDs of 8 bytes: [rkey or slot,
 * kind].
 */
import { Access, Flag, openDevice, Opcode } from 'tartan-rdma';

const SLOTS = 8;
const SLOT_BYTES = 1 << 16;
const GRANT = 1;
const CREDIT = 2;
const [first, ...rest] = process.argv.slice(2);

if (first === 'receive') {
  const [address = '127.0.0.1', spec = 'auto'] = rest;
  const device = openDevice(spec, { host: address, log: console.error });
  const listener = await device.listen(address, 0, (qp) => {
    const ring = device.allocate(SLOTS * SLOT_BYTES, Access.REMOTE_WRITE);
    const notes = device.allocate((SLOTS + 1) * 8); // one for each credit, one for the grant
    const words = new Uint32Array(notes.buffer);
    let messages = 0;
    let sum = 0;
    const tell = (note, value, kind) => {
      words.set([value, kind], note * 2);
      qp.postSend(note, notes, note * 8, 8);
    };
    qp.handler = (opcode, status, wrId, byteLength, slot) => {
      if (opcode !== Opcode.RECV_WRITE_WITH_IMM || status !== 0) return;
      messages++;
      for (const byte of new Uint8Array(ring.buffer, slot * SLOT_BYTES, byteLength)) sum = (sum + byte) >>> 0;
      qp.postRecv(0, undefined, 0, 0);
      tell(slot, slot, CREDIT);
    };
    qp.onError = () => {
      console.log(`received ${messages} messages, their bytes add up to ${sum}`);
      void qp.destroy().then(async () => {
        await Promise.all([ring.deregister(), notes.deregister()]);
        await listener.close();
        await device.close();
      });
    };
    for (let i = 0; i < SLOTS; i++) qp.postRecv(0, undefined, 0, 0);
    tell(SLOTS, ring.rkey, GRANT);
  });
  console.log(`node ring.mjs ${address} ${listener.port} ${spec}`);
} else {
  const [port, spec = 'auto', total = 1000] = [Number(rest[0]), rest[1], ...rest.slice(2).map(Number)];
  const device = openDevice(spec, { host: first, log: console.error });
  const qp = await device.connect(first, port);
  const staging = device.allocate(SLOTS * SLOT_BYTES);
  const notes = device.allocate((SLOTS + 1) * 8);
  const words = new Uint32Array(notes.buffer);
  let rkey = 0;
  let sent = 0;
  let returned = 0;
  let sum = 0;
  const send = (slot) => {
    const length = 1 + ((sent * 7919) % SLOT_BYTES);
    const bytes = new Uint8Array(staging.buffer, slot * SLOT_BYTES, length).fill(sent++);
    for (const byte of bytes) sum = (sum + byte) >>> 0;
    qp.postWriteWithImm(slot, staging, slot * SLOT_BYTES, length, rkey, slot * SLOT_BYTES, slot, Flag.SIGNALED);
  };
  await new Promise((resolve, reject) => {
    qp.onError = (reason) => {
      reject(new Error(reason));
    };
    qp.handler = (opcode, status, note) => {
      if (opcode !== Opcode.RECV || status !== 0) return;
      const [value, kind] = words.subarray(note * 2, note * 2 + 2);
      qp.postRecv(note, notes, note * 8, 8);
      if (kind === GRANT) {
        rkey = value;
        for (let slot = 0; slot < Math.min(SLOTS, total); slot++) send(slot);
      } else if (++returned === total) {
        resolve();
      } else if (sent < total) {
        send(value);
      }
    };
    for (let note = 0; note <= SLOTS; note++) qp.postRecv(note, notes, note * 8, 8);
    device.ring();
  });
  console.log(`sent ${sent} messages, their bytes add up to ${sum}`);
  await device.close();
}
