/**
 * The compiled programs that an agent can give a P4 switch: p4/artefacts/, and what p4/classes.json says each carries.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Program } from 'tartan-p4runtime';
import { TartanError } from '../../wire/errors.js';

export interface Artefact {
  readonly name: string;
  readonly program: Program;
  /** What p4c wrote for BMv2. */
  readonly deviceConfig: Buffer;
  /** Tells this very program from every other: from a digest of it, so that an agent knows it again after a restart. */
  readonly cookie: bigint;
  /** Most data units of a stripe, the only chunk length it takes, its MTU. All 0 in a program that only forwards. */
  readonly k: number;
  readonly chunkBytes: number;
  readonly mtu: number;
}

export const FORWARD = 'forward';

/**
 * @param name  as in p4/classes.json, or 'forward'
 * @throws {TartanError} ERR_ARGUMENT, naming what there is
 */
export function loadArtefact(name: string, folder = programFolder()): Artefact {
  const { about: _, ...classes } = JSON.parse(readFileSync(join(folder, 'classes.json'), 'utf8')) as Record<
    string,
    { k: number; mtu: number; fields: number; fieldBits: number }
  >;
  const found = classes[name];
  if (found === undefined && name !== FORWARD)
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot load '${name}': expected one of ${[...Object.keys(classes), FORWARD].join(', ')}`,
    );
  const deviceConfig = readFileSync(join(folder, 'artefacts', `${name}.json`)),
    p4info = readFileSync(join(folder, 'artefacts', `${name}.p4info.txt`));
  const cookie = createHash('sha256').update(deviceConfig).update(p4info).digest().readBigUInt64BE();
  return {
    name,
    deviceConfig,
    cookie,
    program: Program.fromText(p4info.toString()),
    k: found?.k ?? 0,
    chunkBytes: found === undefined ? 0 : (found.fields * found.fieldBits) / 8,
    mtu: found?.mtu ?? 0,
  };
}

/** p4/ of this checkout, from dist/ and from the sources. */
function programFolder(): string {
  for (let at = dirname(fileURLToPath(import.meta.url)); at !== dirname(at); at = dirname(at)) {
    if (existsSync(join(at, 'p4', 'classes.json'))) return join(at, 'p4');
  }
  throw new TartanError(
    'ERR_NOT_FOUND',
    'Cannot find p4/classes.json: the switch programs are not beside this program',
  );
}
