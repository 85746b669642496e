/** Builds a program beside build.mjs with the kernels linked in; resolves to the path of the executable. */
export function buildProgram(program: 'kernel_check' | 'kernel_bench'): Promise<string>;
