// The yardstick of bench:verbs: the shortest C loop over the same verbs, on the same device, against the same server.
//
//   loop serve ADDRESS                                        grants 16 MiB; prints {"port","rkey"}; serves until killed
//   loop write ADDRESS PORT RKEY BYTES WINDOW poll|event
//                                                             for each line "SECONDS": keeps so many writes in flight so long;
//                                                             prints {"seconds","count"}
//
// It speaks the device's greeting (rdma/native/verbs/cm_object.h), so that a Node client can write to `serve` too, and
// registers from I/O address 0 as the device does.
#include <arpa/inet.h>
#include <rdma/rdma_cma.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define REGION_BYTES (16u << 20)
#define CHECK(what)                                            \
  do {                                                         \
    if (!(what)) {                                             \
      fprintf(stderr, "loop: line %d: %s: %m\n", __LINE__, #what); \
      exit(1);                                                 \
    }                                                          \
  } while (0)

static const struct {
  char magic[8];
  uint32_t version, zero;
} greeting = {{'t', 'a', 'r', 't', 'a', 'n', '-', 'v'}, 1, 0};

static struct rdma_event_channel* channel;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static struct rdma_cm_id* await(enum rdma_cm_event_type wanted) {
  struct rdma_cm_event* event;
  CHECK(rdma_get_cm_event(channel, &event) == 0);
  if (event->event != wanted) {
    fprintf(stderr, "loop: %s, expected %s\n", rdma_event_str(event->event), rdma_event_str(wanted));
    exit(1);
  }
  struct rdma_cm_id* id = event->id;
  rdma_ack_cm_event(event);
  return id;
}

static struct ibv_mr* memory(struct ibv_pd* pd, int access) {
  void* at = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  CHECK(at != MAP_FAILED);
  struct ibv_mr* mr = ibv_reg_mr_iova(pd, at, REGION_BYTES, 0, (unsigned)access);
  CHECK(mr);
  return mr;
}

static struct sockaddr_in address_of(const char* host, int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  CHECK(inet_pton(AF_INET, host, &address.sin_addr) == 1);
  return address;
}

static void create_pair(struct rdma_cm_id* id, struct ibv_pd* pd, struct ibv_cq* cq) {
  struct ibv_qp_init_attr attributes = {.send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC, .cap = {.max_send_wr = 128, .max_recv_wr = 16, .max_send_sge = 2, .max_recv_sge = 1, .max_inline_data = 64}};
  CHECK(rdma_create_qp(id, pd, &attributes) == 0);
}

static int serve(const char* host) {
  struct sockaddr_in address = address_of(host, 0);
  struct rdma_cm_id* listener;
  CHECK(rdma_create_id(channel, &listener, NULL, RDMA_PS_TCP) == 0);
  CHECK(rdma_bind_addr(listener, (struct sockaddr*)&address) == 0 && rdma_listen(listener, 8) == 0);
  struct ibv_pd* pd = ibv_alloc_pd(listener->verbs);
  struct ibv_cq* cq = ibv_create_cq(listener->verbs, 64, NULL, NULL, 0);
  CHECK(pd && cq);
  struct ibv_mr* mr = memory(pd, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
  printf("{\"port\":%d,\"rkey\":%u}\n", ntohs(rdma_get_src_port(listener)), mr->rkey);
  fflush(stdout);
  for (;;) {
    struct rdma_cm_event* event;
    CHECK(rdma_get_cm_event(channel, &event) == 0);
    struct rdma_cm_id* id = event->id;
    enum rdma_cm_event_type type = event->event;
    struct rdma_conn_param parameters = {.private_data = &greeting, .private_data_len = sizeof greeting, .responder_resources = event->param.conn.responder_resources, .initiator_depth = event->param.conn.initiator_depth, .rnr_retry_count = 7};
    rdma_ack_cm_event(event);
    if (type == RDMA_CM_EVENT_CONNECT_REQUEST) {
      create_pair(id, pd, cq);
      CHECK(rdma_accept(id, &parameters) == 0);
    } else if (type == RDMA_CM_EVENT_DISCONNECTED) {
      rdma_disconnect(id);
      rdma_destroy_qp(id);
      rdma_destroy_id(id);
    }
  }
}

static int drive(char** argument) {
  const uint32_t rkey = (uint32_t)strtoul(argument[4], NULL, 10), bytes = (uint32_t)atoi(argument[5]), window = (uint32_t)atoi(argument[6]);
  const int sleeps = strcmp(argument[7], "event") == 0;
  struct sockaddr_in address = address_of(argument[2], atoi(argument[3]));
  struct rdma_cm_id* id;
  CHECK(rdma_create_id(channel, &id, NULL, RDMA_PS_TCP) == 0);
  CHECK(rdma_resolve_addr(id, NULL, (struct sockaddr*)&address, 5000) == 0);
  await(RDMA_CM_EVENT_ADDR_RESOLVED);
  CHECK(rdma_resolve_route(id, 5000) == 0);
  await(RDMA_CM_EVENT_ROUTE_RESOLVED);
  struct ibv_pd* pd = ibv_alloc_pd(id->verbs);
  struct ibv_comp_channel* completions = ibv_create_comp_channel(id->verbs);
  struct ibv_cq* cq = ibv_create_cq(id->verbs, 1024, NULL, completions, 0);
  CHECK(pd && cq);
  create_pair(id, pd, cq);
  struct ibv_mr* mr = memory(pd, IBV_ACCESS_LOCAL_WRITE);
  struct rdma_conn_param parameters = {.private_data = &greeting, .private_data_len = sizeof greeting, .responder_resources = 16, .initiator_depth = 16, .retry_count = 6, .rnr_retry_count = 7};
  CHECK(rdma_connect(id, &parameters) == 0);
  await(RDMA_CM_EVENT_ESTABLISHED);

  char line[64];
  const uint32_t slots = REGION_BYTES / bytes;
  while (fgets(line, sizeof line, stdin)) {
    const double limit = atof(line), begin = now();
    uint32_t posted = 0, done = 0;
    int is_over = 0;
    if (sleeps) CHECK(ibv_req_notify_cq(cq, 0) == 0);
    while (!is_over || done < posted) {
      while (!is_over && posted - done < window) {
        struct ibv_sge piece = {.addr = (uint64_t)(posted % slots) * bytes, .length = bytes, .lkey = mr->lkey};
        struct ibv_send_wr request = {.wr_id = posted, .sg_list = &piece, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED, .wr.rdma = {(uint64_t)(posted % slots) * bytes, rkey}}, *bad;
        CHECK(ibv_post_send(id->qp, &request, &bad) == 0);
        posted++;
      }
      struct ibv_wc wc[64];
      int count = ibv_poll_cq(cq, 64, wc);
      if (count == 0 && sleeps) {
        CHECK(ibv_req_notify_cq(cq, 0) == 0);
        count = ibv_poll_cq(cq, 64, wc);
        if (count == 0) {
          struct ibv_cq* which;
          void* context;
          CHECK(ibv_get_cq_event(completions, &which, &context) == 0);
          ibv_ack_cq_events(which, 1);
        }
      }
      for (int i = 0; i < count; i++) CHECK(wc[i].status == IBV_WC_SUCCESS);
      done += (uint32_t)count;
      if (count > 0 && now() - begin >= limit) is_over = 1;
    }
    printf("{\"seconds\":%.6f,\"count\":%u}\n", now() - begin, done);
    fflush(stdout);
  }
  return 0;
}

int main(int count, char** argument) {
  CHECK((channel = rdma_create_event_channel()));
  if (count == 3 && strcmp(argument[1], "serve") == 0) return serve(argument[2]);
  if (count == 8 && strcmp(argument[1], "write") == 0) return drive(argument);
  fprintf(stderr, "usage: loop serve ADDRESS | loop write ADDRESS PORT RKEY BYTES WINDOW poll|event\n");
  return 2;
}
