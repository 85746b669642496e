/**
 * All-pairs choice of cases: a small set in which every value of every parameter meets every value of every other one.
 * Greedy and deterministic: each case takes the values that cover most pairs not met yet.
 */
export function pairwise<T extends Record<string, readonly unknown[]>>(
  parameters: T,
): { [K in keyof T]: T[K][number] }[] {
  const names = Object.keys(parameters);
  const pairs = new Set<string>();
  const key = (a: number, i: number, b: number, j: number): string =>
    a < b ? `${a}.${i}|${b}.${j}` : `${b}.${j}|${a}.${i}`;
  names.forEach((name, a) =>
    parameters[name]!.forEach((_, i) => {
      for (let b = a + 1; b < names.length; b++)
        parameters[names[b]!]!.forEach((_other, j) => pairs.add(key(a, i, b, j)));
    }),
  );
  const cases: { [K in keyof T]: T[K][number] }[] = [];
  while (pairs.size > 0) {
    // Begin with a pair not met, so that every round makes progress.
    const [first] = pairs;
    const chosen = new Map<number, number>(
      first!.split('|').map((part) => part.split('.').map(Number) as [number, number]),
    );
    names.forEach((name, a) => {
      if (chosen.has(a)) return;
      let best = 0,
        most = -1;
      parameters[name]!.forEach((_, i) => {
        let count = 0;
        for (const [b, j] of chosen) if (pairs.has(key(a, i, b, j))) count++;
        if (count > most) {
          most = count;
          best = i;
        }
      });
      chosen.set(a, best);
    });
    for (const [a, i] of chosen) for (const [b, j] of chosen) if (a < b) pairs.delete(key(a, i, b, j));
    cases.push(
      Object.fromEntries(names.map((name, a) => [name, parameters[name]![chosen.get(a)!]])) as {
        [K in keyof T]: T[K][number];
      },
    );
  }
  return cases;
}
