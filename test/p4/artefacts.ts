/** Where the compiled programs lie, and what each class carries. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Program } from 'tartan-p4runtime';

export const artefacts = fileURLToPath(new URL('../../p4/artefacts/', import.meta.url));

export interface ProgramClass {
  readonly name: string;
  readonly k: number;
  readonly mtu: number;
  readonly chunkBytes: number;
}

const raw = JSON.parse(readFileSync(new URL('../../p4/classes.json', import.meta.url), 'utf8')) as Record<
  string,
  { k: number; mtu: number; fields: number; fieldBits: number }
>;

export const classes: Readonly<Record<string, ProgramClass>> = Object.fromEntries(
  Object.entries(raw)
    .filter(([name]) => name !== 'about')
    .map(([name, { k, mtu, fields, fieldBits }]) => [name, { name, k, mtu, chunkBytes: (fields * fieldBits) / 8 }]),
);

export function loadProgram(name: string): { json: string; program: Program } {
  return {
    json: readFileSync(`${artefacts}${name}.json`, 'utf8'),
    program: Program.fromText(readFileSync(`${artefacts}${name}.p4info.txt`, 'utf8')),
  };
}
