/** What testbed/verbs/soft-roce.sh makes inside the machine. */
export const DEVICE = 'rxe0';
/** One device, many addresses: as many hosts as the connection manager can tell. */
export const ADDRESSES: readonly string[] = [1, 2, 3, 4, 5, 6, 7, 8, 9].map((i) => `10.77.0.${i}`);
