import { RdmaError, type Coder, type CoderSpec, type DigestLayout } from '../device.js';
import type { SimDevice } from './device.js';

const MAX_UNITS = 32;

/** A prepared matrix: here only a checked copy of its description. */
export class SimCoder implements Coder {
  readonly id: number;
  readonly spec: CoderSpec;
  isDestroyed = false;
  readonly #device: SimDevice;

  constructor(device: SimDevice, id: number, spec: CoderSpec) {
    const { k, inputUnits, outputUnits, matrix } = spec;
    const positions = [...inputUnits, ...outputUnits];
    if (inputUnits.length < 1 || inputUnits.length > MAX_UNITS || outputUnits.length > MAX_UNITS || !(k >= 1)) {
      throw new RdmaError(
        'ERR_INVALID_CODER',
        `Cannot create a coder of ${inputUnits.length} inputs and ${outputUnits.length} outputs, k = ${k}`,
      );
    }
    if (new Set(positions).size !== positions.length || positions.some((unit) => !Number.isInteger(unit) || unit < 0)) {
      throw new RdmaError(
        'ERR_INVALID_CODER',
        `Cannot create a coder: units ${positions.join(', ')} are not distinct positions`,
      );
    }
    if (matrix.length !== inputUnits.length * outputUnits.length) {
      throw new RdmaError(
        'ERR_INVALID_CODER',
        `Cannot create a coder: its matrix has ${matrix.length} coefficients, ` +
          `expected ${inputUnits.length * outputUnits.length}`,
      );
    }
    this.#device = device;
    this.id = id;
    this.spec = { ...spec, inputUnits: [...inputUnits], outputUnits: [...outputUnits], matrix: matrix.slice() };
  }

  isUsableBy(device: SimDevice): boolean {
    return this.#device === device && !this.isDestroyed;
  }

  destroy(): void {
    this.isDestroyed = true;
  }
}

/** @returns the header bytes of a unit: a parity header also lists the data units' CRCs */
export function headerBytes(layout: DigestLayout, k: number, unit: number): number {
  return unit < k ? layout.dataHeaderBytes : layout.crcListOffset + 4 * k;
}

/** @returns the payload bytes of a unit of a stripe */
export function unitBytes(k: number, unit: number, stride: number, dataLength: number): number {
  return unit < k ? Math.min(Math.max(dataLength - unit * stride, 0), stride) : Math.min(stride, dataLength);
}
