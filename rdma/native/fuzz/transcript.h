// What a case has done, line by line, in a file: written before it is done, so that after a crash the file says how it
// came to that. The same file replays the case (fuzz --replay FILE).
#pragma once
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

namespace tartan::fuzz {

class Transcript {
 public:
  // `path` empty: kept nowhere.
  explicit Transcript(std::string path) : path_(std::move(path)) {}
  ~Transcript();

  // A new case: empties the file. `title` names the case for the report of a failure.
  void begin(const std::string& title);
  void line(const std::string& text);
  const std::string& path() const { return path_; }
  const std::string& title() const { return title_; }
  uint64_t lines() const { return lines_; }

 private:
  const std::string path_;
  std::string title_;
  int fd_ = -1;
  uint64_t lines_ = 0;
};

// Ends the program: prints what was expected, the case and where its transcript is. Status 2.
[[noreturn]] void fail(const std::string& what);
// From now on failures, reports of sanitizers and hangs name this transcript's case.
void report_to(const Transcript& transcript);

std::string hex(const void* data, size_t bytes);
std::vector<uint8_t> unhex(const std::string& text);

// A line "verb a b c" built or taken apart.
template <class... Parts>
std::string say(const Parts&... parts) {
  std::ostringstream out;
  const char* space = "";
  ((out << space << parts, space = " "), ...);
  return out.str();
}

}  // namespace tartan::fuzz
