/** The rare requests to a node (wire/proto/ring.proto, Request): each becomes one Reply with the same id. */
import { TartanError } from '../wire/errors.js';
import { answerOrRefuse } from '../wire/front-door.js';
import { Control, type Reply, type Request, type UnitEntry } from '../wire/generated/ring.js';
import { FRAME_WORDS, MESSAGE_BYTES } from '../wire/ring-messages.js';
import type { MapKeeper } from './map-keeper.js';
import type { Placements } from './placements.js';
import type { Checked, Scrubber } from './scrubber.js';
import type { UnitStore } from './unit-store.js';

export interface RequestHost {
  readonly store: UnitStore;
  readonly maps: MapKeeper;
  readonly placements: Placements;
  readonly scrubber: Scrubber;
  readonly id: string;
  readonly log: (message: string) => void;
  /** Frees a file's units, now or when nobody reads them any more. */
  readonly deleteFile: (fileId: number) => Promise<void>;
}

/** An entry takes up to about 60 bytes encoded: so many are tried, fewer when they don't fit. */
const MOST_ENTRIES = 128;
/** Of a refusal's message, which may quote what the peer said: UTF-8 of it fits a message. */
const MAX_MESSAGE_CHARS = 1000;
const MESSAGE_ROOM = MESSAGE_BYTES - FRAME_WORDS * 4;

/**
 * Does what is asked; never rejects for what the peer or the disk did.
 *
 * @param mapEpoch  of the sender, as its frame told
 */
export async function answerRequest(host: RequestHost, request: Request, mapEpoch: number): Promise<Reply> {
  const empty = (code: string, message: string): Reply => ({
    id: request.id,
    code,
    message: message.slice(0, MAX_MESSAGE_CHARS),
    mapEpoch: host.maps.epoch,
    units: [],
    more: false,
    writerEpoch: 0,
    commitEpoch: 0,
    commitCounter: 0,
  });
  const serve = async (): Promise<Reply> => {
    const reply = empty('', '');
    if (mapEpoch < host.maps.epoch && request.op?.$case !== 'adoptMap') {
      throw new TartanError(
        'ERR_STALE_MAP',
        `Cannot do '${request.op?.$case}' on node ${host.id}: map epoch is ${mapEpoch}, ${host.maps.epoch} is required`,
      );
    }
    await answer(host, request, reply);
    reply.mapEpoch = host.maps.epoch;
    if (encodedBytes(reply) > MESSAGE_ROOM)
      throw new TartanError(
        'ERR_CAPACITY',
        `Cannot answer '${request.op?.$case}' on node ${host.id}: the answer does not fit a message`,
      );
    return reply;
  };
  return await answerOrRefuse(serve, ({ code, message }) => empty(code, message));
}

function encodedBytes(reply: Reply): number {
  return Control.encode({ kind: { $case: 'reply', value: reply } }).finish().length;
}

async function answer(
  { store, maps, placements, scrubber, id, log, deleteFile }: RequestHost,
  request: Request,
  reply: Reply,
): Promise<void> {
  const op = request.op;
  switch (op?.$case) {
    case 'fence':
      reply.writerEpoch = await store.fence(op.value.fileId, op.value.writerEpoch);
      return;
    case 'inventory':
      await store.discardsSettled(op.value.fileId);
      takeInventory(store, op.value.fileId, op.value.fromStripe, op.value.limit, op.value.verify === true, reply);
      if (op.value.verify === true) {
        // A scrub begins: the log's headers, too, lie there for long.
        if (op.value.fromStripe === 0 && !(await store.checkTail()))
          log(`node ${id}: headers of the log are damaged; a checkpoint takes their place`);
        reply.units = withChecks(reply.units, await scrubber.check(op.value.fileId, reply.units));
      }
      return;
    case 'recordMissing': {
      const { fileId, stripe, writerEpoch, counter, mask, requestEpoch } = op.value;
      await store.recordMissing(
        fileId,
        stripe,
        writerEpoch,
        counter,
        BigInt(mask),
        requestEpoch === 0 ? writerEpoch : requestEpoch,
      );
      return;
    }
    case 'deleteFile':
      await deleteFile(op.value.fileId);
      placements.forget(op.value.fileId);
      return;
    case 'adoptMap':
      if (!(await maps.reach(op.value.mapEpoch)))
        throw new TartanError(
          'ERR_MAP_UNAVAILABLE',
          `Cannot adopt map epoch ${op.value.mapEpoch} on node ${id}: it holds ${maps.epoch}, and the cluster ` +
            'store shows no newer one',
        );
      return;
    case 'fileMark':
      Object.assign(reply, store.fileMark(op.value.fileId));
      return;
    case 'discard':
      await store.discard(op.value.fileId, op.value.fromStripe, op.value.writerEpoch);
      reply.writerEpoch = store.fileMark(op.value.fileId).writerEpoch;
      return;
    case 'condemn': {
      const { fileId, stripe, unit, writerEpoch, counter, payloadCrc } = op.value;
      store.condemn(fileId, stripe, unit, writerEpoch, counter, payloadCrc);
      return;
    }
    default:
      throw new TartanError(
        'ERR_MALFORMED',
        `Cannot serve a request on node ${id}: it names no operation that this version knows`,
      );
  }
}

/** Whole stripes, as many as fit one message. */
function takeInventory(
  store: UnitStore,
  fileId: number,
  fromStripe: number,
  wanted: number,
  verify: boolean,
  reply: Reply,
): void {
  for (let limit = wanted === 0 ? MOST_ENTRIES : Math.min(wanted, MOST_ENTRIES); ; limit = Math.floor(limit / 2)) {
    const { units, more } = store.inventory(fileId, fromStripe, limit);
    reply.units = units.map(
      (unit): UnitEntry => ({
        ...unit,
        missing: Number(unit.missing),
        summary: verify ? SUMMARY_ROOM : NONE,
        dataCrcs: verify ? CRCS_ROOM : NONE,
      }),
    );
    reply.more = more;
    // The longest form of what is filled in afterwards.
    if (encodedBytes({ ...reply, mapEpoch: 0xffffffff }) <= MESSAGE_ROOM || limit <= 1) return;
  }
}

/** Units freed while they were checked are left out. */
function withChecks(units: readonly UnitEntry[], checked: readonly Checked[]): UnitEntry[] {
  return units.flatMap((unit, i) => {
    const found = checked[i];
    if (found === undefined) return [];
    return [
      found === 'damaged'
        ? { ...unit, damaged: true, summary: NONE, dataCrcs: NONE }
        : { ...unit, summary: Buffer.from(found.summary), dataCrcs: Buffer.from(found.dataCrcs) },
    ];
  });
}

const NONE = Buffer.alloc(0);
/** These take the room of what is not known yet: a summary, the CRCs of 32 data units. */
const SUMMARY_ROOM = Buffer.alloc(16),
  CRCS_ROOM = Buffer.alloc(128);
