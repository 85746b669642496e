/** What a file may be called. */
import { TartanError } from '../wire/errors.js';

/** Bytes of UTF-8, as a directory entry of common file systems. */
const MAX_NAME_BYTES = 255;

/**
 * 1 to 255 bytes of well-formed UTF-8, no control characters, no leading slash; slashes inside are part of the name.
 * @throws {TartanError} ERR_ARGUMENT
 */
export function checkFileName(name: string): void {
  const bytes = Buffer.from(name, 'utf8');
  const fault =
    bytes.length === 0
      ? 'it is empty'
      : bytes.length > MAX_NAME_BYTES
        ? `it has ${bytes.length} bytes of UTF-8, at most ${MAX_NAME_BYTES} are allowed`
        : bytes.toString('utf8') !== name
          ? 'it is not well-formed Unicode'
          : /\p{Cc}/u.test(name)
            ? 'it has a control character'
            : name.startsWith('/')
              ? 'it begins with a slash'
              : undefined;
  if (fault !== undefined)
    throw new TartanError(
      'ERR_ARGUMENT',
      `Cannot use ${JSON.stringify(name.slice(0, MAX_NAME_BYTES))} as a file name: ${fault}`,
    );
}
