/**
 * A BMv2 switch for tests: simple_switch_grpc from PATH, its packets through its data-plane gRPC service, so that
 * neither root nor interfaces are needed. Ends with close(); a switch that dies makes what waits for it fail.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { createServer } from 'node:net';
import { BinaryReader, BinaryWriter } from '@bufbuild/protobuf/wire';
import { credentials, makeGenericClientConstructor, type ClientDuplexStream } from '@grpc/grpc-js';

export const DEVICE_ID = 1n;
const CPU_PORT = 255;

const found = spawnSync('simple_switch_grpc', ['--version'], { encoding: 'utf8' });
/** Why tests with BMv2 are skipped, or false. */
export const noBmv2: string | false =
  found.error === undefined ? false : 'simple_switch_grpc is not on PATH: nothing was run on BMv2';

/** What BMv2's data-plane service calls PacketStreamRequest and PacketStreamResponse: the same fields. */
interface DataPlanePacket {
  readonly id: bigint;
  readonly port: number;
  readonly packet: Uint8Array;
}

const encode = ({ id, port, packet }: DataPlanePacket): Buffer =>
  Buffer.from(
    new BinaryWriter()
      .uint32(8)
      .uint64(id)
      .uint32(16)
      .uint64(DEVICE_ID)
      .uint32(24)
      .uint32(port)
      .uint32(34)
      .bytes(packet)
      .finish(),
  );

function decode(bytes: Buffer): DataPlanePacket {
  const reader = new BinaryReader(bytes);
  let id = 0n,
    port = 0,
    packet = new Uint8Array();
  while (reader.pos < reader.len) {
    const [field, wireType] = reader.tag();
    if (field === 1) id = BigInt(reader.uint64());
    else if (field === 3) port = reader.uint32();
    else if (field === 4) packet = Uint8Array.from(reader.bytes());
    else reader.skip(wireType);
  }
  return { id, port, packet };
}

const DataPlane = makeGenericClientConstructor(
  {
    packetStream: {
      path: '/p4.bm.DataplaneInterface/PacketStream',
      requestStream: true,
      responseStream: true,
      requestSerialize: encode,
      requestDeserialize: decode,
      responseSerialize: encode,
      responseDeserialize: decode,
    },
  },
  'DataplaneInterface',
);

export class Bmv2Switch {
  readonly address: string;
  readonly #process: ChildProcess;
  readonly #dataPlane: InstanceType<typeof DataPlane>;
  #stream: ClientDuplexStream<DataPlanePacket, DataPlanePacket> | undefined;
  readonly #sent: { port: number; bytes: Uint8Array }[] = [];
  #changed: () => void = () => undefined;
  #dead: Error | undefined;

  private constructor(process: ChildProcess, address: string, dataPlane: InstanceType<typeof DataPlane>) {
    this.address = address;
    this.#process = process;
    this.#dataPlane = dataPlane;
    process.once('exit', (code, signal) => {
      this.#dead = new Error(`simple_switch_grpc ended with ${code ?? signal}`);
      this.#changed();
    });
  }

  /**
   * Without a program: a controller has to push one.
   *
   * @param grpcPort  of its P4Runtime server; any free one if left out
   */
  static async start(grpcPort?: number): Promise<Bmv2Switch> {
    const [grpc, dataPlane, thrift] = [grpcPort ?? (await freePort()), await freePort(), await freePort()];
    // It ends with this process, also when that is killed (setpriv is util-linux').
    const child = spawn(
      'setpriv',
      [
        '--pdeathsig',
        'KILL',
        'simple_switch_grpc',
        '--no-p4',
        '--device-id',
        String(DEVICE_ID),
        '--thrift-port',
        String(thrift),
        '--log-level',
        'error',
        '--',
        '--grpc-server-addr',
        `127.0.0.1:${grpc}`,
        '--dp-grpc-server-addr',
        `127.0.0.1:${dataPlane}`,
        '--cpu-port',
        String(CPU_PORT),
      ],
      { stdio: 'ignore' },
    );
    const client = new DataPlane(`127.0.0.1:${dataPlane}`, credentials.createInsecure(), {
      'grpc.initial_reconnect_backoff_ms': 100,
      'grpc.max_reconnect_backoff_ms': 200,
    });
    try {
      await new Promise<void>((resolve, reject) => {
        child.once('error', reject);
        child.once('exit', (code, signal) =>
          reject(new Error(`simple_switch_grpc ended with ${code ?? signal} at its start`)),
        );
        client.waitForReady(Date.now() + 30_000, (error) => {
          if (error) reject(error);
          else resolve();
        });
      });
    } catch (error) {
      child.kill('SIGKILL');
      client.close();
      throw error;
    }
    return new Bmv2Switch(child, `127.0.0.1:${grpc}`, client);
  }

  /**
   * Puts one packet into a port.
   *
   * @param copies  how many packets are awaited; more than these are returned if they have come with them
   * @param waitMs  at most so long
   * @returns what left, by port
   */
  async process(
    port: number,
    bytes: Uint8Array,
    copies: number,
    waitMs = 10_000,
  ): Promise<{ port: number; bytes: Uint8Array }[]> {
    this.#sent.length = 0;
    this.#stream ??= this.#open();
    this.#stream.write({ id: 0n, port, packet: bytes });
    const deadline = Date.now() + waitMs;
    while (this.#sent.length < copies) {
      if (this.#dead !== undefined) throw this.#dead;
      if (Date.now() > deadline) break;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 100);
        this.#changed = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    return this.#sent.slice().sort((a, b) => a.port - b.port);
  }

  /** BMv2 takes packets only when it has a program. */
  #open(): ClientDuplexStream<DataPlanePacket, DataPlanePacket> {
    const stream = (
      this.#dataPlane as unknown as { packetStream(): ClientDuplexStream<DataPlanePacket, DataPlanePacket> }
    ).packetStream();
    stream.on('data', ({ port, packet }: DataPlanePacket) => {
      this.#sent.push({ port, bytes: packet });
      this.#changed();
    });
    // Opened before the program was there, a stream is closed by BMv2: the next packet opens another.
    const ended = (): void => {
      if (this.#stream === stream) this.#stream = undefined;
    };
    stream.on('error', ended);
    stream.on('end', ended);
    return stream;
  }

  async close(): Promise<void> {
    const ended =
      this.#process.exitCode !== null
        ? undefined
        : new Promise<void>((resolve) => this.#process.once('exit', () => resolve()));
    this.#stream?.on('error', () => undefined);
    this.#stream?.cancel();
    this.#dataPlane.close();
    this.#process.kill('SIGKILL');
    await ended;
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise<void>((resolve) => server.close(() => resolve()));
  return port;
}
