#include "transcript.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

// Only there when the program was built with AddressSanitizer or ThreadSanitizer.
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace tartan::fuzz {

namespace {
// For the signal handler and the sanitizers' callback: text that needs no allocation when it is printed.
char report[1024];

void print_report() { [[maybe_unused]] ssize_t written = write(STDERR_FILENO, report, strlen(report)); }

void on_alarm(int) {
  static constexpr char what[] = "fuzz: the case does not end: something hangs\n";
  [[maybe_unused]] ssize_t written = write(STDERR_FILENO, what, sizeof what - 1);
  print_report();
  _exit(2);
}
}  // namespace

Transcript::~Transcript() {
  if (fd_ >= 0) close(fd_);
}

void Transcript::begin(const std::string& title) {
  title_ = title;
  if (path_.empty()) return;
  if (fd_ >= 0) close(fd_);
  fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) {
    fprintf(stderr, "fuzz: cannot write %s: %s\n", path_.c_str(), strerror(errno));
    exit(1);
  }
}

void Transcript::line(const std::string& text) {
  lines_++;
  if (fd_ < 0) return;
  const std::string whole = text + "\n";
  [[maybe_unused]] ssize_t written = write(fd_, whole.data(), whole.size());
}

void report_to(const Transcript& transcript) {
  snprintf(report, sizeof report, "fuzz: in %s\n%s%s%s", transcript.title().c_str(),
           transcript.path().empty() ? "" : "fuzz: it can be replayed with --replay ", transcript.path().c_str(),
           transcript.path().empty() ? "" : "\n");
  static bool is_set = false;
  if (is_set) return;
  is_set = true;
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(print_report);
  signal(SIGALRM, on_alarm);
}

void fail(const std::string& what) {
  fprintf(stderr, "fuzz: %s\n", what.c_str());
  print_report();
  _exit(2);
}

std::string hex(const void* data, size_t bytes) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * bytes);
  for (size_t i = 0; i < bytes; i++) {
    const uint8_t byte = static_cast<const uint8_t*>(data)[i];
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

std::vector<uint8_t> unhex(const std::string& text) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2)
    bytes.push_back(static_cast<uint8_t>(std::stoul(text.substr(i, 2), nullptr, 16)));
  return bytes;
}

}  // namespace tartan::fuzz
