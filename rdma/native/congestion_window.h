// How many packets of one sender may be under way, and how fast they leave. Reacts to loss as TCP does (once in a round
// trip, less sharply) and to delay before that: a switch whose queues hold few packets drops silently, and a deep queue
// makes every retransmission late. Times in µs of one monotonic clock.
//
// Source: the rules are those of RFC 6298 (round-trip times) and RFC 5681 (growth), the factor of 0.7 that of RFC 9438;
// leaving slow start by delay is an idea of RFC 9406.
#pragma once
#include <algorithm>
#include <cstdint>

namespace tartan {

class CongestionWindow {
 public:
  explicit CongestionWindow(uint32_t most) : most_(most) {}

  // A packet has been acknowledged. rtt_us: 0 when it had been sent more than once.
  void on_acknowledged(int64_t rtt_us) {
    backoff_ = 0;
    if (rtt_us > 0) measure(rtt_us);
    const bool queueing = srtt_us_ > 0 && srtt_us_ - least_us_ > std::max(QUEUE_US, least_us_ / 2);
    if (window_ < threshold_) {
      if (queueing)
        threshold_ = window_;
      else
        window_ += 1;
    } else {
      window_ += (queueing ? -2 : 1) / window_;
    }
    window_ = std::clamp(window_, LEAST, most_);
  }

  // A packet sent at `sent_us` was lost. partly: some of its copies have arrived. With a dozen copies of each packet
  // that is the rule on a lossy network; were it answered as the loss of all, the window would never open.
  void on_lost(int64_t sent_us, int64_t now_us, bool partly) {
    if (sent_us < reduced_us_) return;  // of the round trip that has been answered already
    reduced_us_ = now_us;
    window_ = threshold_ = std::max(LEAST, window_ * (partly ? 0.9 : 0.7));
  }

  // Nothing came back for timeout_us().
  void on_timeout(int64_t now_us) {
    reduced_us_ = now_us;
    threshold_ = std::max(LEAST, window_ / 2);
    window_ = LEAST;
    if (backoff_ < 6) backoff_++;
  }

  double packets() const { return window_; }
  // Of late: what comes back sooner answers an earlier sending.
  int64_t least_us() const { return least_us_; }
  int64_t smoothed_us() const { return srtt_us_; }
  int64_t timeout_us() const {
    return std::min<int64_t>(
        MOST_TIMEOUT_US, (srtt_us_ == 0 ? FIRST_TIMEOUT_US : std::max(LEAST_TIMEOUT_US, srtt_us_ + 4 * variance_us_))
                             << backoff_);
  }
  // After such a silence one packet is sent again: it costs less than waiting for the timeout (RFC 8985's tail loss
  // probe).
  int64_t probe_us() const { return std::min(timeout_us(), std::max<int64_t>(8000, 2 * srtt_us_)); }
  // Packets may overtake each other by so much before one that is missing counts as lost.
  // More than a receiver may keep its acknowledgement back.
  int64_t reordering_us() const { return std::max<int64_t>(4000, srtt_us_ / 2); }
  // Between two packets.
  int64_t pace_us() const {
    return srtt_us_ == 0
               ? 0
               : static_cast<int64_t>(static_cast<double>(srtt_us_) / (window_ * (window_ < threshold_ ? 2 : 1.25)));
  }

 private:
  static constexpr double LEAST = 2;
  static constexpr int64_t QUEUE_US = 5000, LEAST_TIMEOUT_US = 10'000, FIRST_TIMEOUT_US = 100'000,
                           MOST_TIMEOUT_US = 500'000;
  static constexpr uint32_t LEAST_LASTS = 1 << 14;  // samples after which the least round trip is looked for anew

  void measure(int64_t rtt_us) {
    if (srtt_us_ == 0) {
      srtt_us_ = rtt_us;
      variance_us_ = rtt_us / 2;
    } else {
      variance_us_ += (std::abs(srtt_us_ - rtt_us) - variance_us_) / 4;
      srtt_us_ += (rtt_us - srtt_us_) / 8;
    }
    if (rtt_us < next_least_us_) next_least_us_ = rtt_us;
    if (rtt_us < least_us_ || least_us_ == 0) least_us_ = rtt_us;
    if (++samples_ % LEAST_LASTS == 0) {
      least_us_ = next_least_us_;
      next_least_us_ = INT64_MAX;
    }
  }

  const double most_;
  double window_ = 10, threshold_ = 1e9;
  int64_t srtt_us_ = 0, variance_us_ = 0, least_us_ = 0, next_least_us_ = INT64_MAX;
  int64_t reduced_us_ = INT64_MIN;
  uint32_t samples_ = 0, backoff_ = 0;
};

}  // namespace tartan
