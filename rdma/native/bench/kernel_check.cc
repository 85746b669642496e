// Runs kernels on cases given as text and prints what they made, for test/rdma/kernels.test.ts to compare.
//
//   kernels                                                     → "gfni,avx2,portable"
//   default                                                     → the kernel of a plan that names none, or
//   "unavailable"
//   encode KERNEL MODE PLACE INPUTS OUTPUTS MATRIX OUT_LEN IN…  → "OUT… digest…", or "unavailable"
//   pq IN…                                                      → "P Q" by ISA-L's RAID functions, or "unavailable"
//   crc32c CRC IN                                               → 8 hexadecimal digits
//
// KERNEL: one of ours, or isal. MODE: plain (no digests), digest, or stream (digests, outputs past the caches). Bytes
// are hexadecimal, "-" when there are none. A digest is CRC:SUMMARY, inputs' first. PLACE: where each buffer lies on
// its own pages: a number of bytes after their beginning, or "end": its last byte before a page that must not be
// touched. Every byte around an output is checked afterwards.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "../coding.h"
#include "isal.h"

namespace {

using Bytes = std::vector<uint8_t>;

[[noreturn]] void fail(const std::string& line) {
  std::cerr << "kernel_check: " << line << std::endl;
  std::exit(1);
}

Bytes from_hex(const std::string& text) {
  if (text == "-") return {};
  Bytes bytes(text.size() / 2);
  for (size_t i = 0; i < bytes.size(); i++) {
    const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
    bytes[i] = static_cast<uint8_t>(digit(text[2 * i]) << 4 | digit(text[2 * i + 1]));
  }
  return bytes;
}

std::string to_hex(const uint8_t* bytes, size_t len) {
  if (len == 0) return "-";
  std::string text(2 * len, 0);
  for (size_t i = 0; i < len; i++) {
    text[2 * i] = "0123456789abcdef"[bytes[i] >> 4];
    text[2 * i + 1] = "0123456789abcdef"[bytes[i] & 15];
  }
  return text;
}

// Memory of `len` bytes on pages of its own, between two pages that cannot be touched, filled with a pattern.
class GuardedBuffer {
 public:
  GuardedBuffer(size_t len, const std::string& place) : len_(len) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t offset = place == "end" ? 0 : std::stoul(place);
    inner_ = (len + offset + page - 1) / page * page + page;
    mapped_ = inner_ + 2 * page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, inner_, PROT_READ | PROT_WRITE) != 0) fail("cannot map memory");
    start_ = base_ + page;
    std::memset(start_, kPattern, inner_);
    data_ = place == "end" ? start_ + inner_ - len : start_ + offset;
  }
  ~GuardedBuffer() { munmap(base_, mapped_); }
  GuardedBuffer(const GuardedBuffer&) = delete;

  uint8_t* data() const { return data_; }

  void check_surroundings() const {
    for (const uint8_t* at = start_; at < start_ + inner_; at++) {
      if (at == data_) at += len_;
      if (at < start_ + inner_ && *at != kPattern)
        fail("a kernel wrote outside its output, at " + std::to_string(at - data_));
    }
  }

 private:
  static constexpr uint8_t kPattern = 0xa5;
  size_t len_, inner_, mapped_;
  uint8_t *base_, *start_, *data_;
};

std::string print(const tartan::Digest& digest) {
  char crc[16];
  std::snprintf(crc, sizeof crc, "%08x:", digest.crc32c);
  return crc + to_hex(digest.summary, 16);
}

std::string encode(std::istringstream& line) {
  std::string kernel, mode, place, matrix_text, text;
  int inputs = 0, outputs = 0;
  size_t out_len = 0;
  line >> kernel >> mode >> place >> inputs >> outputs >> matrix_text >> out_len;
  const Bytes matrix = from_hex(matrix_text);
  if (matrix.size() != static_cast<size_t>(inputs * outputs)) fail("the matrix has the wrong size");

  std::vector<std::unique_ptr<GuardedBuffer>> in_buffers, out_buffers;
  std::vector<const uint8_t*> in;
  std::vector<size_t> in_len;
  std::vector<uint8_t*> out;
  for (int c = 0; c < inputs && line >> text; c++) {
    const Bytes bytes = from_hex(text);
    in_buffers.push_back(std::make_unique<GuardedBuffer>(bytes.size(), place));
    if (!bytes.empty()) std::memcpy(in_buffers.back()->data(), bytes.data(), bytes.size());
    in.push_back(bytes.empty() ? nullptr : in_buffers.back()->data());
    in_len.push_back(bytes.size());
  }
  if (in.size() != static_cast<size_t>(inputs)) fail("a case has too few inputs");
  for (int r = 0; r < outputs; r++) {
    out_buffers.push_back(std::make_unique<GuardedBuffer>(out_len, place));
    out.push_back(out_buffers.back()->data());
  }

  std::vector<tartan::Digest> in_digest(32), out_digest(32);
  const bool digest = mode != "plain";
  tartan::coding_stream_from(mode == "stream" ? 0 : SIZE_MAX);
  if (kernel == "isal") {
    const Isal* isal = Isal::open();
    if (isal == nullptr) return "unavailable";
    std::vector<uint8_t> tables(static_cast<size_t>(32 * inputs * outputs));
    isal->ec_init_tables(inputs, outputs, const_cast<uint8_t*>(matrix.data()), tables.data());
    isal->ec_encode_data(static_cast<int>(out_len), inputs, outputs, tables.data(), const_cast<uint8_t**>(in.data()),
                         out.data());
  } else {
    tartan::CodingPlan* plan = tartan::coding_plan_create(inputs, outputs, matrix.data(), kernel.c_str());
    if (plan == nullptr) return "unavailable";
    if (kernel != tartan::coding_plan_kernel(plan)) fail("asked for kernel " + kernel + ", got another");
    tartan::coding_encode(plan, in.data(), in_len.data(), out.data(), out_len, digest ? in_digest.data() : nullptr,
                          digest ? out_digest.data() : nullptr);
    tartan::coding_plan_destroy(plan);
  }

  std::string result;
  for (int r = 0; r < outputs; r++) {
    out_buffers[static_cast<size_t>(r)]->check_surroundings();
    result += to_hex(out[static_cast<size_t>(r)], out_len) + ' ';
  }
  for (int c = 0; digest && c < inputs; c++) result += print(in_digest[static_cast<size_t>(c)]) + ' ';
  for (int r = 0; digest && r < outputs; r++) result += print(out_digest[static_cast<size_t>(r)]) + ' ';
  return result;
}

std::string default_kernel() {
  const uint8_t one = 1;
  const std::unique_ptr<tartan::CodingPlan, decltype(&tartan::coding_plan_destroy)> plan(
      tartan::coding_plan_create(1, 1, &one, nullptr), tartan::coding_plan_destroy);
  return plan ? tartan::coding_plan_kernel(plan.get()) : "unavailable";
}

std::string pq(std::istringstream& line) {
  const Isal* isal = Isal::open();
  if (isal == nullptr) return "unavailable";
  std::vector<uint8_t*> units;
  size_t len = 0;
  for (std::string text; line >> text;) {
    const Bytes bytes = from_hex(text);
    len = bytes.size();
    units.push_back(static_cast<uint8_t*>(std::aligned_alloc(64, (len + 63) & ~size_t{63})));
    std::memcpy(units.back(), bytes.data(), len);
  }
  for (int i = 0; i < 2; i++) units.push_back(static_cast<uint8_t*>(std::aligned_alloc(64, (len + 63) & ~size_t{63})));
  if (isal->pq_gen(static_cast<int>(units.size()), static_cast<int>(len), reinterpret_cast<void**>(units.data())) != 0)
    fail("pq_gen refuses the units");
  const std::string result = to_hex(units[units.size() - 2], len) + ' ' + to_hex(units.back(), len);
  for (uint8_t* unit : units) std::free(unit);
  return result;
}

std::string crc32c(std::istringstream& line) {
  std::string crc, text;
  line >> crc >> text;
  const Bytes bytes = from_hex(text);
  char result[16];
  std::snprintf(result, sizeof result, "%08x",
                tartan::coding_crc32c(static_cast<uint32_t>(std::stoul(crc, nullptr, 16)), bytes.data(), bytes.size()));
  return result;
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream line(text);
    std::string command;
    line >> command;
    if (command == "kernels")
      std::cout << tartan::coding_kernels() << '\n';
    else if (command == "default")
      std::cout << default_kernel() << '\n';
    else if (command == "encode")
      std::cout << encode(line) << '\n';
    else if (command == "pq")
      std::cout << pq(line) << '\n';
    else if (command == "crc32c")
      std::cout << crc32c(line) << '\n';
    else
      fail("unknown command '" + command + "'");
  }
}
