/** Puts an experiment's files into a folder: NAME.csv, NAME.json, NAME.svg, NAME.png. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { toCsv } from './csv.js';
import { toPng, toSvg } from './draw.js';
import type { Result } from './result.js';

/** @returns the paths written */
export async function writeResult(folder: string, result: Result): Promise<string[]> {
  mkdirSync(folder, { recursive: true });
  const svg = await toSvg(result.chart);
  const files: readonly [string, string | Buffer][] = [
    ['csv', toCsv(result)],
    ['json', `${JSON.stringify(result, undefined, 1)}\n`],
    ['svg', svg],
    ['png', toPng(svg)],
  ];
  return files.map(([extension, content]) => {
    const path = join(folder, `${result.name}.${extension}`);
    writeFileSync(path, content);
    return path;
  });
}
