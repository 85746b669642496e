/**
 * How a control call proves that it knows the cluster's secret, and its answer too. In the call's metadata:
 *
 *   tartan-token: 1 TIME NONCE MAC     TIME milliseconds since 1970, NONCE 32 hex digits, MAC 64 hex digits
 *   MAC = HMAC-SHA256(secret, "call" \n method path \n TIME \n NONCE \n SHA-256 of the request)
 *
 * and in the answer's initial metadata:
 *
 *   tartan-proof: MAC                  MAC = HMAC-SHA256(secret, "answer" \n method path \n NONCE \n SHA-256 of the
 *   answer)
 *
 * So a call cannot be altered, nor repeated: the server refuses a token more than 30 s away from its own clock, and one
 * whose nonce it has seen in that time. Compared in constant time. Nothing is encrypted; the secret never travels. A
 * server that restarts forgets nonces: within 30 s a recorded call could be repeated to it once.
 */
import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto';

export const TOKEN_KEY = 'tartan-token';
export const PROOF_KEY = 'tartan-proof';
/** Clocks of a cluster's machines agree better than this. */
export const TOKEN_WINDOW_MS = 30_000;
/** Nonces remembered; calls beyond so many within the window are refused. */
const MAX_NONCES = 10_000;

const TOKEN = /^1 (\d{1,15}) ([0-9a-f]{32}) ([0-9a-f]{64})$/;

export interface Token {
  readonly text: string;
  readonly nonce: string;
}

/** @param nowMs  wall clock, milliseconds since 1970 */
export function makeToken(secret: string, path: string, request: Uint8Array, nowMs = Date.now()): Token {
  const nonce = randomBytes(16).toString('hex'),
    time = String(Math.floor(nowMs));
  return {
    nonce,
    text: `1 ${time} ${nonce} ${mac(secret, ['call', path, time, nonce, digest(request)]).toString('hex')}`,
  };
}

export function makeProof(secret: string, path: string, nonce: string, answer: Uint8Array): string {
  return mac(secret, ['answer', path, nonce, digest(answer)]).toString('hex');
}

export function isProof(text: string, secret: string, path: string, nonce: string, answer: Uint8Array): boolean {
  return isEqual(text, mac(secret, ['answer', path, nonce, digest(answer)]));
}

/** A server's side: checks tokens, and remembers nonces while a token with them would be fresh. */
export class TokenChecker {
  readonly #secret: string;
  readonly #now: () => number;
  /** Nonce → when it may be forgotten; in order of arrival, which is nearly that of time. */
  readonly #seen = new Map<string, number>();

  constructor(secret: string, now: () => number = Date.now) {
    this.#secret = secret;
    this.#now = now;
  }

  /** @returns the nonce of a good token, which is good only once; else undefined */
  accept(text: string | undefined, path: string, request: Uint8Array): string | undefined {
    const [, time, nonce, given] = TOKEN.exec(text ?? '') ?? [];
    if (time === undefined || nonce === undefined || given === undefined) return undefined;
    // The MAC before all else: only who knows the secret can fill the memory of nonces.
    if (!isEqual(given, mac(this.#secret, ['call', path, time, nonce, digest(request)]))) return undefined;
    const now = this.#now();
    if (Math.abs(Number(time) - now) > TOKEN_WINDOW_MS) return undefined;
    for (const [old, until] of this.#seen) {
      if (until >= now) break;
      this.#seen.delete(old);
    }
    if (this.#seen.has(nonce) || this.#seen.size >= MAX_NONCES) return undefined;
    // A token from a clock ahead of ours stays fresh for up to two windows.
    this.#seen.set(nonce, now + 2 * TOKEN_WINDOW_MS);
    return nonce;
  }
}

function mac(secret: string, lines: readonly string[]): Buffer {
  return createHmac('sha256', secret).update(lines.join('\n')).digest();
}
function digest(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function isEqual(hex: string, expected: Buffer): boolean {
  const given = Buffer.from(hex, 'hex');
  return given.length === expected.length && timingSafeEqual(given, expected);
}
