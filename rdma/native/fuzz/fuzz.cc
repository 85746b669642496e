// The native engine against peers that say anything: `fuzz --target stream|packets --seed N --cases N` (or --seconds
// N).
//
// Each case has an engine of its own, and its transcript goes to a file as it happens (--transcript FILE). What is
// wrong ends the program: a sanitizer's report, a check of Owner's, or a case that does not end within --patience
// seconds.
// `--replay FILE` does one transcript again. `--canary` does wrong on purpose, to show that it would be seen.
//
// Status: 0 nothing was found, 2 something was (sanitizers have their own), 1 it could not run.
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include "packet_maker.h"
#include "packet_world.h"
#include "stream_maker.h"
#include "stream_world.h"

namespace tartan::fuzz {
namespace {

struct Options {
  std::string target = "stream", transcript, replay;
  uint64_t seed = 1, cases = 0;
  int64_t seconds = 0;
  unsigned patience = 600;
  bool canary = false;
};

struct Sum {
  uint64_t cases = 0, frames = 0;
  Owner::Tally tally;

  void add(const Owner::Tally& other) {
    cases++;
    for (int i = 0; i < 16; i++) tally.statuses[i] += other.statuses[i];
    for (int i = 0; i < 256; i++) tally.opcodes[i] += other.opcodes[i];
    tally.accepted += other.accepted;
    tally.connected += other.connected;
    tally.refused += other.refused;
    tally.failed += other.failed;
  }
};

int64_t monotonic_seconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec;
}

template <class World, class Maker>
void play(Transcript& transcript, uint64_t seed, Sum& sum) {
  Random random(seed);
  World world(transcript);
  Maker(world, random).play();
  sum.frames += world.frames_seen();
  const Owner::Tally tally = world.owner().tally;
  world.finish();
  sum.add(tally);
}

template <class World>
void replay(Transcript& transcript, std::ifstream& file) {
  World world(transcript);
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line[0] != '#') world.run(line);
  }
  world.finish();
}

// What each sanitizer must see.
void do_wrong() {
  static int raced = 0;
  std::thread other([] { raced++; });
  raced++;
  other.join();
  volatile size_t past = 16;
  uint8_t* bytes = new uint8_t[16];
  printf("fuzz: read %d past the end, counted %d\n", bytes[past], raced);
}

int run(const Options& options) {
  Transcript transcript(options.transcript);
  if (options.canary) {
    transcript.begin("the canary");
    report_to(transcript);
    do_wrong();
    return 0;
  }
  if (!options.replay.empty()) {
    std::ifstream file(options.replay);
    std::string first;
    if (!std::getline(file, first) || (first != "# stream" && first != "# packets")) {
      fprintf(stderr, "fuzz: %s is no transcript\n", options.replay.c_str());
      return 1;
    }
    transcript.begin("the replay of " + options.replay);
    report_to(transcript);
    alarm(options.patience);
    if (first == "# stream")
      replay<StreamWorld>(transcript, file);
    else
      replay<PacketWorld>(transcript, file);
    printf("fuzz: %s: nothing found\n", options.replay.c_str());
    return 0;
  }
  const bool is_stream = options.target == "stream";
  if (!is_stream && options.target != "packets") {
    fprintf(stderr, "fuzz: --target %s: expected stream or packets\n", options.target.c_str());
    return 1;
  }
  Sum sum;
  const int64_t until = monotonic_seconds() + options.seconds;
  for (uint64_t i = 0; options.cases > 0 ? i < options.cases : monotonic_seconds() < until; i++) {
    const uint64_t seed = options.seed + i;
    transcript.begin(say("case --target", options.target, "--seed", seed, "--cases 1"));
    transcript.line("# " + options.target);
    transcript.line("# " + transcript.title());
    report_to(transcript);
    alarm(options.patience);
    if (is_stream)
      play<StreamWorld, StreamMaker>(transcript, seed, sum);
    else
      play<PacketWorld, PacketMaker>(transcript, seed, sum);
  }
  alarm(0);
  const Owner::Tally& tally = sum.tally;
  printf(
      "fuzz %s: seeds %llu to %llu: %llu cases, %llu lines, %llu frames heard; %llu accepted, %llu connected, "
      "%llu failed; completions by status",
      options.target.c_str(), static_cast<unsigned long long>(options.seed),
      static_cast<unsigned long long>(options.seed + sum.cases - 1), static_cast<unsigned long long>(sum.cases),
      static_cast<unsigned long long>(transcript.lines()), static_cast<unsigned long long>(sum.frames),
      static_cast<unsigned long long>(tally.accepted), static_cast<unsigned long long>(tally.connected),
      static_cast<unsigned long long>(tally.failed));
  for (int status = 0; status <= INVALID_REQUEST; status++)
    printf(" %d:%llu", status, static_cast<unsigned long long>(tally.statuses[status]));
  printf("; nothing found\n");
  return 0;
}

Options parse(int count, char** words) {
  Options options;
  for (int i = 1; i < count; i++) {
    const std::string word = words[i];
    if (word == "--canary") {
      options.canary = true;
      continue;
    }
    const char* value = i + 1 < count ? words[++i] : "";
    if (word == "--target")
      options.target = value;
    else if (word == "--transcript")
      options.transcript = value;
    else if (word == "--replay")
      options.replay = value;
    else if (word == "--seed")
      options.seed = strtoull(value, nullptr, 10);
    else if (word == "--cases")
      options.cases = strtoull(value, nullptr, 10);
    else if (word == "--seconds")
      options.seconds = strtoll(value, nullptr, 10);
    else if (word == "--patience")
      options.patience = static_cast<unsigned>(strtoul(value, nullptr, 10));
    else {
      fprintf(stderr, "fuzz: what is %s?\n", words[i]);
      exit(1);
    }
  }
  return options;
}

}  // namespace
}  // namespace tartan::fuzz

int main(int count, char** words) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  return tartan::fuzz::run(tartan::fuzz::parse(count, words));
}
