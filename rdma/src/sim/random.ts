/**
 * Seeded randomness for the simulation: the sfc32 generator (Doty-Humphrey's "small fast counting" generator: three
 * words of state and a counter, 32 bits out, period at least 2^32), seeded by an FNV-1a hash of the seed and a label.
 *
 * A fork depends on the seed and on the labels alone, not on how many numbers were drawn before: one more draw in one
 * part of the simulation leaves the others as they were.
 */
export class SimRandom {
  readonly #seed: string;
  #a: number;
  #b: number;
  #c: number;
  #counter = 1;

  constructor(seed: number | string) {
    this.#seed = String(seed);
    this.#a = fnv1a(`${this.#seed}/a`);
    this.#b = fnv1a(`${this.#seed}/b`);
    this.#c = fnv1a(`${this.#seed}/c`);
    for (let i = 0; i < 12; i++) this.uint32();
  }

  /** @returns a uniform integer, 0 … 2^32 − 1 */
  uint32(): number {
    const out = (this.#a + this.#b + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + out) | 0;
    return out >>> 0;
  }

  /** @returns a uniform number, 0 ≤ x < 1, in steps of 2^-32 */
  random(): number {
    return this.uint32() / 0x1_0000_0000;
  }

  /** @returns a uniform integer, 0 … below − 1 */
  int(below: number): number {
    return Math.floor(this.random() * below);
  }

  /** @returns an independent generator, the same for the same seed and label */
  fork(label: string): SimRandom {
    return new SimRandom(`${this.#seed}/${label}`);
  }
}

function fnv1a(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  // FNV's low bits mix well, its high bits only after more input: fold once.
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
  return hash ^ (hash >>> 13);
}
