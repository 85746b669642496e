/** Where build-addon.mjs puts the native addons. */
import { fileURLToPath } from 'node:url';

/**
 * The path of a native addon: the ordinary one, or with TARTAN_SANITIZE=address or =thread the one that was built with
 * that sanitizer (`npm run test:sanitize`).
 *
 * @param name  of the file, without its ending
 */
export function addonPath(name: 'tartan_rdma' | 'tartan_rdma_verbs'): string {
  const sanitizer = process.env['TARTAN_SANITIZE'] ?? '';
  const folder = sanitizer === 'address' || sanitizer === 'thread' ? `${sanitizer}/` : '';
  return fileURLToPath(new URL(`../build/${folder}${name}.node`, import.meta.url));
}
