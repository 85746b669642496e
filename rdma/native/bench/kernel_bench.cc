// Times our kernels, ISA-L and memcpy side by side on one CPU and prints JSON; rdma/bench-kernels.mjs makes a table of
// it.
//
//   kernel_bench [--repetitions N] [--unit-bytes N] [--arena-mib N] [--budget-ms N] [--cpu N] [--kernels a,b]
//
// Warm: the same stripe again and again. Cold: stripes one after the other through an arena larger than the last cache.
// "+stream": outputs go past the caches (coding_stream_from). Every figure is input bytes per second. The subjects of
// one shape take turns within a repetition, so that a slow moment of the machine meets all of them.
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../coding.h"
#include "isal.h"

namespace {

struct Options {
  int repetitions = 9;
  size_t unit_bytes = 64 * 1024;
  size_t arena_mib = 1536;
  double budget_ms = 8;  // least time of one warm measurement
  int cpu = -1;          // the last one by default
  std::string kernels;
};

struct Shape {
  int k, m;
};
constexpr Shape kShapes[] = {{2, 1}, {4, 2}, {8, 3}, {8, 4}};

using Units = std::vector<uint8_t*>;

// Codes one stripe: k inputs, then m outputs, unit_bytes each.
struct Subject {
  std::string name;
  std::function<void(const Units&)> run;
  std::vector<double> warm = {}, cold = {};  // GB/s, one each repetition
};

uint8_t gf_multiply_by_two(uint8_t a) { return static_cast<uint8_t>(a << 1 ^ (a & 0x80 ? 0x1d : 0)); }

// Rows 2^(r·c).
std::vector<uint8_t> vandermonde(int k, int m) {
  std::vector<uint8_t> matrix;
  for (int r = 0; r < m; r++) {
    uint8_t coefficient = 1;
    for (int c = 0; c < k; c++) {
      matrix.push_back(coefficient);
      for (int i = 0; i < r; i++) coefficient = gf_multiply_by_two(coefficient);
    }
  }
  return matrix;
}

std::vector<Subject> make_subjects(const Shape& shape, const Options& options) {
  const size_t unit = options.unit_bytes;
  const int k = shape.k, m = shape.m;
  const std::vector<uint8_t> matrix = vandermonde(k, m);
  const std::vector<size_t> lengths(static_cast<size_t>(k), unit);
  std::vector<Subject> subjects;
  const std::string list = options.kernels.empty() ? tartan::coding_kernels() : options.kernels;
  for (size_t begin = 0; begin < list.size();) {
    const size_t comma = std::min(list.find(',', begin), list.size());
    const std::string name = list.substr(begin, comma - begin);
    begin = comma + 1;
    const std::shared_ptr<tartan::CodingPlan> plan(tartan::coding_plan_create(k, m, matrix.data(), name.c_str()),
                                                   tartan::coding_plan_destroy);
    if (!plan) continue;
    const bool best = subjects.empty();
    for (const int way : {0, 1, 2, 3}) {
      const bool digests = way & 1, stream = way & 2;
      if (stream && !best) continue;
      subjects.push_back({name + (digests ? "+digests" : "") + (stream ? "+stream" : ""),
                          [plan, lengths, k, unit, digests, stream](const Units& units) {
                            tartan::coding_stream_from(stream ? 0 : SIZE_MAX);
                            tartan::Digest in[32], out[32];
                            tartan::coding_encode(plan.get(), units.data(), lengths.data(), units.data() + k, unit,
                                                  digests ? in : nullptr, digests ? out : nullptr);
                          }});
    }
  }
  if (const Isal* isal = Isal::open()) {
    const auto tables = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(32 * k * m));
    isal->ec_init_tables(k, m, const_cast<uint8_t*>(matrix.data()), tables->data());
    subjects.push_back({"isal", [isal, tables, k, m, unit](const Units& units) {
                          isal->ec_encode_data(static_cast<int>(unit), k, m, tables->data(),
                                               const_cast<uint8_t**>(units.data()),
                                               const_cast<uint8_t**>(units.data() + k));
                        }});
  }
  // Copies every input to some output.
  subjects.push_back({"memcpy", [k, m, unit](const Units& units) {
                        for (int c = 0; c < k; c++)
                          std::memcpy(units[static_cast<size_t>(k + c % m)], units[static_cast<size_t>(c)], unit);
                      }});
  return subjects;
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

Units stripe_at(uint8_t* base, const Shape& shape, size_t unit) {
  Units units;
  units.reserve(static_cast<size_t>(shape.k + shape.m));
  for (int u = 0; u < shape.k + shape.m; u++) units.push_back(base + static_cast<size_t>(u) * unit);
  return units;
}

double measure_warm(const Subject& subject, const Shape& shape, const Options& options, uint8_t* arena) {
  const Units units = stripe_at(arena, shape, options.unit_bytes);
  for (int i = 0; i < 3; i++) subject.run(units);
  long stripes = 0;
  const double begin = seconds();
  double end = begin;
  for (; end - begin < options.budget_ms / 1000; end = seconds()) {
    for (int i = 0; i < 16; i++, stripes++) subject.run(units);
  }
  return static_cast<double>(stripes) * shape.k * static_cast<double>(options.unit_bytes) / (end - begin) / 1e9;
}

double measure_cold(const Subject& subject, const Shape& shape, const Options& options, uint8_t* arena,
                    size_t arena_bytes) {
  const size_t stripe = static_cast<size_t>(shape.k + shape.m) * options.unit_bytes;
  const size_t stripes = arena_bytes / stripe;
  const double begin = seconds();
  for (size_t s = 0; s < stripes; s++) subject.run(stripe_at(arena + s * stripe, shape, options.unit_bytes));
  return static_cast<double>(stripes) * shape.k * static_cast<double>(options.unit_bytes) / (seconds() - begin) / 1e9;
}

void print(const char* name, const std::vector<double>& values, const char* end) {
  std::printf("\"%s\":[", name);
  for (size_t i = 0; i < values.size(); i++) std::printf("%s%.2f", i ? "," : "", values[i]);
  std::printf("]%s", end);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--repetitions")
      options.repetitions = std::atoi(argv[i + 1]);
    else if (name == "--unit-bytes")
      options.unit_bytes = std::strtoull(argv[i + 1], nullptr, 10);
    else if (name == "--arena-mib")
      options.arena_mib = std::strtoull(argv[i + 1], nullptr, 10);
    else if (name == "--budget-ms")
      options.budget_ms = std::atof(argv[i + 1]);
    else if (name == "--cpu")
      options.cpu = std::atoi(argv[i + 1]);
    else if (name == "--kernels")
      options.kernels = argv[i + 1];
    else {
      std::fprintf(stderr, "kernel_bench: unknown option %s\n", argv[i]);
      std::exit(2);
    }
  }
  return options;
}

// Keeps the process on one CPU of those it may use. Returns it, or -1.
int pin(int wanted) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return -1;
  int cpu = wanted;
  for (int i = 0; wanted < 0 && i < CPU_SETSIZE; i++) {
    if (CPU_ISSET(i, &set)) cpu = i;
  }
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return sched_setaffinity(0, sizeof set, &set) == 0 ? cpu : -1;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const int cpu = pin(options.cpu);
  const size_t arena_bytes = options.arena_mib << 20;
  void* mapped = mmap(nullptr, arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    std::fprintf(stderr, "kernel_bench: cannot map %zu MiB\n", options.arena_mib);
    return 1;
  }
  madvise(mapped, arena_bytes, MADV_HUGEPAGE);
  uint8_t* arena = static_cast<uint8_t*>(mapped);
  uint64_t x = 88172645463325252ull;
  for (size_t i = 0; i < arena_bytes; i += 8) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    std::memcpy(arena + i, &x, 8);
  }

  std::printf("{\"cpu\":%d,\"unitBytes\":%zu,\"arenaMiB\":%zu,\"repetitions\":%d,\"isal\":%s,\"shapes\":[", cpu,
              options.unit_bytes, options.arena_mib, options.repetitions, Isal::open() ? "true" : "false");
  bool first_shape = true;
  for (const Shape& shape : kShapes) {
    std::vector<Subject> subjects = make_subjects(shape, options);
    for (int repetition = 0; repetition < options.repetitions; repetition++) {
      for (Subject& subject : subjects) {
        subject.warm.push_back(measure_warm(subject, shape, options, arena));
        subject.cold.push_back(measure_cold(subject, shape, options, arena, arena_bytes));
      }
    }
    std::printf("%s{\"k\":%d,\"m\":%d,\"subjects\":[", first_shape ? "" : ",", shape.k, shape.m);
    first_shape = false;
    for (size_t i = 0; i < subjects.size(); i++) {
      std::printf("%s{\"name\":\"%s\",", i ? "," : "", subjects[i].name.c_str());
      print("warm", subjects[i].warm, ",");
      print("cold", subjects[i].cold, "}");
    }
    std::printf("]}");
  }
  std::printf("]}\n");
}
