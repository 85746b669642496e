/**
 * The software switch's side of a reader or rebuilder that lacks a unit: k units go into the switch, one comes out.
 *
 * The peer asks as it would ask the unit's node, with READ records (wire/ring-messages.ts); the switch reads k others
 * from their nodes into slots of its own, decodes, checks what a parity header says of the result, completes its
 * header, and writes header and payload into the peer's ring. So the peer's link carries the unit once, not k times.
 * Soft state, as everything here: when it is lost, or refuses, the peer reads k units itself.
 */
import { Flag } from 'tartan-rdma';
import { epochFloor } from '../cluster/files.js';
import type { ClusterMap, FileRecord } from '../cluster/records.js';
import { parseCode } from '../erasure/code/index.js';
import { layoutOf } from '../erasure/layout/index.js';
import type { MessageChannel } from '../pipeline/channel.js';
import { StripeReader, type ReaderContext, type StripeResult } from '../pipeline/stripe-reader.js';
import { isOperating } from '../wire/errors.js';
import { detach } from '../wire/front-door.js';
import { MessageType, READ_WORDS, Refusal } from '../wire/ring-messages.js';

/** Reads one peer may have under way. */
const MOST_READS = 128;
const HEADER_WRITE = 0x4000_0000;

export class DecoderSession {
  readonly counters = { unitsDecoded: 0, bytesDecoded: 0, decodesFailed: 0 };
  private readonly reader: StripeReader;
  private readonly units: number;
  private readonly posted = new Map<number, StripeResult>();
  private nextWrite = 1;
  private underWay = 0;
  private ended: Promise<void> | undefined;

  /** @throws {TartanError} ERR_RING_MEMORY, ERR_UNKNOWN_CODE, ERR_UNKNOWN_LAYOUT */
  constructor(
    private readonly channel: MessageChannel,
    context: ReaderContext,
    private readonly file: FileRecord,
    map: ClusterMap,
    private readonly onProtocolError: (reason: string) => void,
  ) {
    const code = parseCode(file.code);
    this.units = code.k + code.m;
    this.reader = new StripeReader(context, file, code, layoutOf(file, code), map);
  }

  async connect(): Promise<void> {
    await this.reader.connect();
  }

  /** From now on reads are served. */
  serve(): void {
    this.channel.onRecords = (type, words, w, count) => {
      if (type !== MessageType.READ) {
        this.protocolError(`an unexpected message of type ${type}`);
        return;
      }
      for (let i = 0; i < count; i++) this.request(words.slice(w + i * READ_WORDS, w + (i + 1) * READ_WORDS));
    };
    this.channel.onWritten = (wrId) => {
      this.written(wrId);
    };
  }

  adopt(map: ClusterMap): void {
    this.reader.nodes.map = map;
    this.channel.mapEpoch = map.epoch;
  }

  /** Ends the session: connection first, then the reads under way, then memory. Idempotent. */
  destroy(reason: string): Promise<void> {
    this.ended ??= (async () => {
      await this.channel.destroy(reason);
      for (const result of this.posted.values()) result.release();
      this.posted.clear();
      await this.reader.destroy();
    })();
    return this.ended;
  }

  private request(request: Uint32Array): void {
    const unit = request[5]! & 0xff;
    if (this.underWay >= MOST_READS || unit >= this.units || pair(request, 1) !== this.file.id) {
      this.protocolError(`a read of unit ${unit} of file ${pair(request, 1)}, with ${this.underWay} under way`);
      return;
    }
    this.underWay++;
    detach(
      this.decode(request, pair(request, 3), unit).finally(() => {
        this.underWay--;
      }),
    );
  }

  private async decode(request: Uint32Array, stripe: number, unit: number): Promise<void> {
    const exact = request[12] !== 0 || request[13] !== 0;
    let result: StripeResult;
    try {
      result = await this.reader.read({
        stripe,
        dataLength: undefined,
        epoch: request[exact ? 12 : 6]!,
        counter: request[exact ? 13 : 7]!,
        exact,
        make: unit,
        floorEpoch: epochFloor(this.file, stripe),
      });
    } catch (error) {
      if (!isOperating(error)) throw error;
      this.fail(request, Refusal.UNREACHABLE);
      return;
    }
    const made = result.made!;
    if (this.channel.closed) {
      result.release();
      return;
    }
    if (made.payloadBytes > request[10]!) {
      result.release();
      this.fail(request, Refusal.CAPACITY);
      return;
    }
    const { qp, hub } = this.channel,
      id = this.nextWrite;
    this.nextWrite = id === HEADER_WRITE - 1 ? 1 : id + 1;
    this.posted.set(id, result);
    this.counters.unitsDecoded++;
    this.counters.bytesDecoded += made.payloadBytes;
    qp.postWrite(id | HEADER_WRITE, made.region, made.headerOffset, made.headerBytes, request[8]!, request[11]!);
    qp.postWriteWithImm(
      id,
      made.region,
      made.payloadOffset,
      made.payloadBytes,
      request[8]!,
      request[9]!,
      request[0]!,
      Flag.SIGNALED,
    );
    hub.wake();
  }

  /** Completions come in the order of posting: with the payload's, the header's has come too. */
  private written(wrId: number): void {
    if ((wrId & HEADER_WRITE) !== 0) return;
    this.posted.get(wrId)?.release();
    this.posted.delete(wrId);
  }

  private fail(request: Uint32Array, refusal: number): void {
    this.counters.decodesFailed++;
    if (this.channel.closed) return;
    const queue = this.channel.records(MessageType.READ_FAILED),
      at = queue.push();
    queue.words.set([request[0]!, refusal, 0, 0], at);
    this.channel.touch();
  }

  private protocolError(reason: string): void {
    this.onProtocolError(`decoding for '${this.file.name}': ${reason}`);
    this.channel.qp.toError(reason);
  }
}

function pair(words: Uint32Array, w: number): number {
  return words[w + 1]! * 0x1_0000_0000 + words[w]!;
}
