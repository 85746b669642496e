#include "services.h"

#include <time.h>

namespace tartan {

int64_t monotonic_ms() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
}

void Services::set_deadline(Pollable* pollable, int64_t deadline_ms) {
  pollable->deadline_ms = deadline_ms;
  if (deadline_ms != 0 && !pollable->timed) {
    pollable->timed = true;
    timers.push_back(pollable);
  }
}

void Services::bury(Pollable* pollable) {
  if (pollable->buried) return;
  pollable->buried = true;
  graveyard.push_back(pollable);
}

}  // namespace tartan
