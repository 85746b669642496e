/** Beyond loopback nothing listens without the cluster's secret. */
import { isIPv4, isIPv6 } from 'node:net';

/** Whether an address to listen on reaches this machine only; of names, 'localhost' alone is taken at its word. */
export function isLoopback(host: string): boolean {
  if (host === 'localhost') return true;
  if (isIPv4(host)) return host.startsWith('127.');
  return isIPv6(host) && /^(::1|::ffff:127\.[0-9.]+|(0{1,4}:){7}0{0,3}1)$/i.test(host);
}
