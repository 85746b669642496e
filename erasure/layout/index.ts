/** Which node holds which unit, and which unit holds which byte of a file. */
export { LayoutError } from './errors.js';
export {
  LAYOUTS, NOBODY, lastingLayout, scatteredLayout, layoutFor, layoutOf, makeLayout, nodeOfUnit, unitOfNode, placeOfOffset, offsetOfPlace, stripeBytes, stripeCount, stripeDataLength, unitLength,
  MIN_UNIT_BYTES, MAX_UNIT_BYTES, type Layout, type LayoutName, type Place, type PlacedFile,
} from './layout.js';
