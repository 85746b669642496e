/** The store's keys (records.ts lists what they hold). */
export const CLUSTER_KEY = 'cluster';
export const MAP_KEY = 'map';
export const FILE_ID_KEY = 'file-id';
export const FILES_BY_ID = 'files/by-id/';
/** Files without a name, one key each: ranged without reading all records. */
export const UNNAMED_FILES = 'files/unnamed/';
/** The index of files by state (file-states.ts). */
export const OPEN_FILES = 'files/by-state/open/';
export const DELETED_FILES = 'files/by-state/deleted/';
export const NODE_LEASES = 'leases/node/';
export const SWITCH_LEASES = 'leases/switch/';
export const SCRUB_KEY = 'scrub';
export const REPAIR_KEY = 'leases/repair';
export const REPAIR_WISH_KEY = 'leases/repair-wish';

export function fileNameKey(name: string): string {
  return `files/by-name/${name}`;
}
/** Hexadecimal of fixed width, so that ranges ascend by id. */
export function fileIdKey(id: number): string {
  return FILES_BY_ID + hex(id);
}
export function fileStateKey(state: 'open' | 'deleted', id: number): string {
  return (state === 'open' ? OPEN_FILES : DELETED_FILES) + hex(id);
}
export function nodeLeaseKey(id: string): string {
  return NODE_LEASES + id;
}
export function unnamedKey(id: number): string {
  return UNNAMED_FILES + hex(id);
}

function hex(id: number): string {
  return id.toString(16).padStart(16, '0');
}
