import type { Coder, CoderSpec } from '../device.js';
import type { NativeDevice } from './native.js';

const MAX_UNITS = 32;

/** @throws {RangeError} naming what is wrong: a spec is a program's own, so a wrong one is a bug */
function check(spec: CoderSpec): void {
  const { k, inputUnits, outputUnits, matrix, digest } = spec;
  const units = [...inputUnits, ...outputUnits];
  if (!Number.isInteger(k) || k < 1 || k > 255)
    throw new RangeError(`Cannot create a coder: k is ${k}, 1 to 255 is expected`);
  if (inputUnits.length > MAX_UNITS || outputUnits.length > MAX_UNITS)
    throw new RangeError(
      `Cannot create a coder: ${inputUnits.length} inputs and ${outputUnits.length} outputs, at ` +
        `most ${MAX_UNITS} of each are expected`,
    );
  if (units.some((unit) => !Number.isInteger(unit) || unit < 0 || unit > 255))
    throw new RangeError(`Cannot create a coder: unit positions are ${units.join(', ')}, 0 to 255 are expected`);
  if (new Set(units).size !== units.length)
    throw new RangeError(
      `Cannot create a coder: unit positions are ${units.join(', ')}, each at most once is expected`,
    );
  if (matrix.length !== inputUnits.length * outputUnits.length)
    throw new RangeError(
      'Cannot create a coder: the matrix ' +
        `has ${matrix.length} coefficients, ${inputUnits.length * outputUnits.length} are expected`,
    );
  const headerBytes = Math.min(digest.dataHeaderBytes, digest.crcListOffset + 4 * k);
  const ends = [digest.payloadCrcOffset + 4, digest.sealOffset + 4, digest.summaryOffset + 16];
  if (ends.some((end) => !Number.isInteger(end) || end < 0 || end > headerBytes))
    throw new RangeError(`Cannot create a coder: digests end at ${ends.join(', ')}, a header has ${headerBytes} bytes`);
}

/** A coder of a soft device; requests already posted with it still run after `destroy()`. */
export class SoftCoder implements Coder {
  readonly id: number;
  #destroyed = false;

  constructor(
    private readonly native: NativeDevice,
    readonly spec: CoderSpec,
    kernel: string,
  ) {
    check(spec);
    const { k, inputUnits, outputUnits, matrix, digest } = spec;
    const words = Uint32Array.of(
      k,
      inputUnits.length,
      outputUnits.length,
      digest.payloadCrcOffset,
      digest.sealOffset,
      digest.summaryOffset,
      digest.crcListOffset,
      digest.dataHeaderBytes,
      ...inputUnits,
      ...outputUnits,
    );
    this.id = native.createCoder(words, matrix, kernel);
  }

  destroy(): void {
    if (this.#destroyed) return;
    this.#destroyed = true;
    this.native.removeCoder(this.id);
  }
}
