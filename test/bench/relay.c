// The yardstick of the path benchmark: plain C, blocking sockets, the same bytes, checksums and processes as Tartan's path.
//   relay source PORT BYTES        one process: CRC32C of every data unit, then [stripe] to the relay, window of 64 stripes
//   relay relay PORT P1 P2 P3      reads a stripe, checks its CRCs, XORs the parity, CRCs it, sends one unit to each sink
//   relay sink PORT                checks the CRC of every unit, acknowledges it
//   relay feed PORT UNITS          a reader's source: units with their CRC     relay gather PORT FEEDS UNITS   checks them
//   relay memcpy BYTES            one thread: each byte once (to a switch), then 3/2 of it (to the nodes)
//   relay odirect DIR BYTES SYNC   the same bytes (3/2 of BYTES) to three files at once: O_DIRECT, fdatasync every SYNC bytes of each
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <nmmintrin.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { UNIT = 65536, K = 2, WINDOW = 64, HEADER = 96 };
static void die(const char *what) { perror(what); exit(1); }
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
// Three independent streams, as fast CRC code keeps them; the combination is left out, it costs nothing by comparison.
static uint32_t crc(const uint8_t *p, size_t n) {
  const uint64_t *w = (const uint64_t *)p; size_t third = n / 24; uint64_t a = 0, b = 0, c = 0;
  for (size_t i = 0; i < third; i++) { a = _mm_crc32_u64(a, w[i]); b = _mm_crc32_u64(b, w[third + i]); c = _mm_crc32_u64(c, w[2 * third + i]); }
  for (size_t i = 3 * third; i < n / 8; i++) a = _mm_crc32_u64(a, w[i]);
  return (uint32_t)(a ^ b * 3 ^ c * 7);
}
static void put(int fd, struct iovec *v, int n) {
  while (n > 0) {
    ssize_t k = writev(fd, v, n); if (k <= 0) die("writev");
    while (n > 0 && (size_t)k >= v->iov_len) { k -= v->iov_len; v++; n--; }
    if (n > 0) { v->iov_base = (char *)v->iov_base + k; v->iov_len -= k; }
  }
}
static int get(int fd, void *p, size_t n) { char *c = p; while (n) { ssize_t k = read(fd, c, n); if (k == 0) return 0; if (k < 0) die("read"); c += k; n -= k; } return 1; }
static int listener(int port) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1; setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(fd, (void *)&a, sizeof a) || listen(fd, 8)) die("listen");
  return fd;
}
static int dial(int port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  for (int i = 0; i < 500; i++) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1; setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (!connect(fd, (void *)&a, sizeof a)) return fd;
    close(fd); usleep(10000);
  }
  die("connect"); return -1;
}
static uint8_t *memory(size_t n) { uint8_t *p = mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0); if (p == MAP_FAILED) die("mmap"); return p; }

static int source(int port, uint64_t bytes) {
  int fd = dial(port); size_t stripe = K * UNIT; uint8_t *ring = memory(stripe * WINDOW); uint64_t total = bytes / stripe, sent = 0, acked = 0;
  for (size_t i = 0; i < stripe * WINDOW; i += 8) *(uint64_t *)(ring + i) = i * 0x9e3779b97f4a7c15u;
  double t = now();
  while (acked < total) {
    if (sent < total && sent - acked < WINDOW) {
      uint8_t *at = ring + (sent % WINDOW) * stripe; uint32_t head[HEADER / 4] = {0}; head[0] = crc(at, UNIT); head[1] = crc(at + UNIT, UNIT);
      struct iovec v[2] = {{head, sizeof head}, {at, stripe}}; put(fd, v, 2); sent++;
    }
    if (sent == total || sent - acked == WINDOW) { uint32_t n; if (!get(fd, &n, 4)) { fprintf(stderr, "source: the relay has gone\n"); return 1; } acked += n; }
  }
  printf("%f\n", total * stripe / (now() - t) / 1e6);
  return 0;
}
static int relay(int port, char **sinks) {
  int in = accept(listener(port), 0, 0), out[3], one = 1; setsockopt(in, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  for (int i = 0; i < 3; i++) out[i] = dial(atoi(sinks[i]));
  size_t stripe = K * UNIT; uint8_t *ring = memory(stripe * WINDOW), *parity = memory((size_t)UNIT * WINDOW); uint64_t n = 0, acks[3] = {0}, told = 0; int open = 1;
  while (open || told < n) {
    struct pollfd p[4] = {{in, open && n - told < WINDOW ? POLLIN : 0, 0}, {out[0], POLLIN, 0}, {out[1], POLLIN, 0}, {out[2], POLLIN, 0}};
    poll(p, 4, -1);
    for (int i = 0; i < 3; i++) if (p[i + 1].revents & POLLIN) { uint8_t b[256]; ssize_t k = read(out[i], b, sizeof b); if (k <= 0) return 1; acks[i] += k; }
    uint64_t least = acks[0] < acks[1] ? acks[0] : acks[1]; if (acks[2] < least) least = acks[2];
    if (least > told) { uint32_t d = least - told; if (write(in, &d, 4) != 4) return 1; told = least; }
    if (!(p[0].revents & (POLLIN | POLLHUP))) continue;
    uint32_t head[HEADER / 4]; if (!get(in, head, sizeof head)) { open = 0; continue; }
    uint8_t *at = ring + (n % WINDOW) * stripe, *par = parity + (n % WINDOW) * (size_t)UNIT; get(in, at, stripe);
    if (crc(at, UNIT) != head[0] || crc(at + UNIT, UNIT) != head[1]) { fprintf(stderr, "relay: checksum\n"); return 1; }
    for (size_t i = 0; i < UNIT; i += 16) _mm_store_si128((__m128i *)(par + i), _mm_xor_si128(_mm_load_si128((__m128i *)(at + i)), _mm_load_si128((__m128i *)(at + UNIT + i))));
    uint32_t h[3][HEADER / 4] = {{head[0]}, {head[1]}, {crc(par, UNIT)}}; uint8_t *from[3] = {at, at + UNIT, par};
    for (int i = 0; i < 3; i++) { struct iovec v[2] = {{h[i], HEADER}, {from[i], UNIT}}; put(out[(n + i) % 3], v, 2); }
    n++;
  }
  return 0;
}
static int sink(int port) {
  int fd = accept(listener(port), 0, 0), one = 1; setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); uint8_t *ring = memory((size_t)UNIT * WINDOW);
  for (uint64_t n = 0;; n++) {
    uint32_t head[HEADER / 4]; if (!get(fd, head, sizeof head)) return 0;
    uint8_t *at = ring + (n % WINDOW) * (size_t)UNIT; get(fd, at, UNIT);
    if (crc(at, UNIT) != head[0]) { fprintf(stderr, "sink: checksum\n"); return 1; }
    uint8_t ack = 1; if (write(fd, &ack, 1) != 1) return 0;
  }
}
static int feed(int port, uint64_t units) {
  int fd = dial(port); uint8_t *p = memory((size_t)UNIT * WINDOW);
  for (uint64_t n = 0; n < units; n++) { uint8_t *at = p + (n % WINDOW) * (size_t)UNIT; uint32_t head[HEADER / 4] = {crc(at, UNIT)}; struct iovec v[2] = {{head, HEADER}, {at, UNIT}}; put(fd, v, 2); }
  uint8_t end; get(fd, &end, 1); return 0;
}
static int gather(int port, int feeds, uint64_t units) {
  int l = listener(port), fd[8]; for (int i = 0; i < feeds; i++) fd[i] = accept(l, 0, 0);
  uint8_t *p = memory((size_t)UNIT * WINDOW); double t = now();
  for (uint64_t n = 0; n < units * feeds; n++) { uint32_t head[HEADER / 4]; get(fd[n % feeds], head, sizeof head); uint8_t *at = p + (n % WINDOW) * (size_t)UNIT; get(fd[n % feeds], at, UNIT); if (crc(at, UNIT) != head[0]) return 1; }
  printf("%f\n", (double)units * feeds * UNIT / (now() - t) / 1e6); return 0;
}
// One process a file, all at once, as there is one node a disk: in turns they would be slower than nodes that work side by side.
static int odirect(const char *dir, uint64_t bytes, uint64_t sync) {
  uint64_t each = bytes / 2; size_t piece = 1 << 20; if (sync < piece) piece = (sync + 4095) & ~(size_t)4095;
  int fd[3], status, bad = 0; uint8_t *p = memory(piece);
  for (int i = 0; i < 3; i++) {
    char name[512]; snprintf(name, sizeof name, "%s/direct%d", dir, i); unlink(name);
    fd[i] = open(name, O_CREAT | O_WRONLY | O_DIRECT, 0600); if (fd[i] < 0) die(name);
    if (ftruncate(fd[i], each + piece)) die("ftruncate");  // sparse, as a node's store is
  }
  double t = now();
  for (int i = 0; i < 3; i++) {
    pid_t child = fork(); if (child < 0) die("fork");
    if (child > 0) continue;
    uint64_t unsynced = 0;
    for (uint64_t at = 0; at < each; at += piece) {
      if (pwrite(fd[i], p, piece, at) != (ssize_t)piece) { perror("pwrite"); _exit(1); }
      if ((unsynced += piece) >= sync || at + piece >= each) { if (fdatasync(fd[i])) { perror("fdatasync"); _exit(1); } unsynced = 0; }
    }
    _exit(0);
  }
  for (int i = 0; i < 3; i++) if (wait(&status) < 0 || status != 0) bad = 1;
  if (bad) return 1;
  printf("%f\n", bytes / (now() - t) / 1e6); return 0;
}
static int copies(uint64_t bytes) {
  size_t piece = 1 << 17, ring = piece * WINDOW * 4; uint8_t *from = memory(ring), *to = memory(ring + ring / 2); double t = now();
  for (uint64_t n = 0; n < bytes; n += piece) {
    size_t at = (n / piece) % (WINDOW * 4) * piece; memcpy(to + at, from + at, piece); __asm__ volatile("" ::: "memory");
    memcpy(to + at / 2 * 3, to + at, piece); memcpy(to + at / 2 * 3, from + at, piece / 2); __asm__ volatile("" ::: "memory");
  }
  printf("%f\n", bytes / (now() - t) / 1e6); return 0;
}
static double seconds(int who) { struct rusage u; getrusage(who, &u); return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6; }
// Last line of stderr: seconds of CPU this process and its children have used.
static void account(void) { fprintf(stderr, "%f\n", seconds(RUSAGE_SELF) + seconds(RUSAGE_CHILDREN)); }
int main(int c, char **v) {
  atexit(account);
  if (c >= 3 && !strcmp(v[1], "memcpy")) return copies(strtoull(v[2], 0, 10));
  if (c >= 4 && !strcmp(v[1], "source")) return source(atoi(v[2]), strtoull(v[3], 0, 10));
  if (c >= 6 && !strcmp(v[1], "relay")) return relay(atoi(v[2]), v + 3);
  if (c >= 3 && !strcmp(v[1], "sink")) return sink(atoi(v[2]));
  if (c >= 4 && !strcmp(v[1], "feed")) return feed(atoi(v[2]), strtoull(v[3], 0, 10));
  if (c >= 5 && !strcmp(v[1], "gather")) return gather(atoi(v[2]), atoi(v[3]), strtoull(v[4], 0, 10));
  if (c >= 5 && !strcmp(v[1], "odirect")) return odirect(v[2], strtoull(v[3], 0, 10), strtoull(v[4], 0, 10));
  fprintf(stderr, "usage: relay source|relay|sink|feed|gather|odirect …\n"); return 2;
}
