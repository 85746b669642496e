/** What applications do with a writer, as promises; and the record that a reader goes by. */
import type { FileRecord } from '../../cluster/records.js';
import type { FileReader, FileWriter } from '../../writer/index.js';

/** The record a reader goes by. */
export function recordOf(reader: FileReader): FileRecord {
  return (reader as unknown as { file: FileRecord }).file;
}

/** Resolves when the bytes are in the ring. */
export function written(writer: FileWriter, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    if (writer.errored !== null) {
      reject(writer.errored);
      return;
    }
    writer.write(bytes, (error) => {
      if (error) reject(writer.errored ?? error);
      else resolve();
    });
  });
}

/** Ends a writer; resolves when all it was given is acknowledged. */
export function ended(writer: FileWriter): Promise<void> {
  return new Promise((resolve, reject) => {
    if (writer.errored !== null) {
      reject(writer.errored);
      return;
    }
    writer.once('error', reject);
    writer.once('finish', resolve);
    writer.end();
  });
}

export function destroyed(writer: FileWriter): Promise<void> {
  return new Promise((resolve) => {
    if (writer.closed) {
      resolve();
      return;
    }
    writer.once('close', () => {
      resolve();
    });
    writer.destroy();
  });
}
