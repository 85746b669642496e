/** Builds the fuzzer, with sanitizers or plain; resolves to the path of the executable. */
export function buildFuzzer(sanitizer: 'address' | 'thread' | 'plain'): Promise<string>;
