#include "parallel/watchdog.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>
#include <utility>

#include "core/base/check.h"
#include "core/base/error.h"
#include "parallel/heartbeat.h"
#include "parallel/last_words.h"

namespace openmoe {
namespace {

using Clock = std::chrono::steady_clock;

// Seconds between heartbeats of a rank: 0.2 up to 100 ranks, of which rank 0 gets at most 500 a
// second up to 500 ranks, and one of each with more. A quarter of the limit of silence if shorter.
constexpr double kMinPeriod = 0.2, kMaxPeriod = 1.0, kPeriodPerRank = 0.002;
constexpr double kContact = 15.0;  // seconds until rank 0 says whom it has never heard of
constexpr int kRepeats = 3;        // of what must not be lost
// Seconds by which ranks stagger when rank 0 is silent, so that one speaks as a rule.
constexpr int kDeputies = 5;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// What every rank says of itself once, over MPI: its name, then its groups as name and first rank,
// which tell groups apart.
std::string describe_rank(const std::string& name, const CollectiveObservers& observers) {
  std::string text = name + "\n";
  for (const CollectiveGroup& group : observers.groups())
    text += concat(group.name, ' ', group.world_ranks.front(), '\n');
  return text;
}

JobGroups read_groups(const std::vector<std::string>& ranks, std::vector<std::string>& names) {
  JobGroups job;
  std::map<std::string, int> known;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    std::istringstream lines(ranks[r]);
    std::getline(lines, names.emplace_back());
    std::vector<int>& own = job.groups_of_rank.emplace_back();
    for (std::string line; std::getline(lines, line);) {
      const auto [at, is_new] = known.emplace(line, static_cast<int>(job.groups.size()));
      if (is_new) job.groups.push_back({line.substr(0, line.rfind(' ')), {}});
      job.groups[static_cast<std::size_t>(at->second)].world_ranks.push_back(static_cast<int>(r));
      own.push_back(at->second);
    }
  }
  return job;
}

void write_error(const std::string& text) {
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
}

// The main thread hangs and MPI may only be called from there, so the process ends as it is; a
// launcher that sees one rank end like this ends the others.
[[noreturn]] void end_process(int rank, const std::string& verdict) {
  if (verdict.empty()) {  // another rank speaks, and is given the time for it
    std::this_thread::sleep_for(kMostTimeToBeRead + std::chrono::seconds(1));
  } else {
    write_error(concat("openmoe: error on rank ", rank, ": the job is stuck: ", verdict,
                       "\nThe job ends; train --resume continues from its last checkpoint "
                       "(run.watchdog_seconds says how long to wait, 0 for ever).\n"));
    leave_last_words();
  }
  _exit(kExitFailure);
}

}  // namespace

class Watchdog::Impl {
 public:
  Impl(Communicator& world, const std::string& name, const CollectiveObservers& observers,
       const RankActivity& activity, const StuckLimits& limits)
      : rank_(world.rank_in_group()), observers_(observers), activity_(activity), limits_(limits) {
    std::string contact;
    if (rank_ == 0) {
      contact = std::to_string(std::random_device()());
      for (const std::string& address : socket_.addresses()) contact += "\n" + address;
    }
    world.broadcast(contact, 0);
    std::istringstream lines(contact);
    std::getline(lines, key_);
    for (std::string line; std::getline(lines, line);)
      if (const auto address = parse_address(line)) candidates_.push_back(*address);
    groups_ = read_groups(world.all_gather(describe_rank(name, observers)), names_);
    const auto now = Clock::now();
    peers_.resize(names_.size());
    for (Peer& peer : peers_) peer.heard = now;
    changed_ = started_ = now;
    // Signals are for the main thread.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { watch(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  ~Impl() {
    leaves_.store(true);
    socket_.wake();
    thread_.join();
  }

  void learn_groups(Communicator& world) {
    const std::string& name = names_[static_cast<std::size_t>(rank_)];
    std::vector<std::string> names;
    JobGroups groups = read_groups(world.all_gather(describe_rank(name, observers_)), names);
    const std::lock_guard lock(groups_mutex_);
    groups_ = std::move(groups);
  }

 private:
  struct Peer {
    bool was_heard = false;
    Clock::time_point heard;
    sockaddr_in address{};
    Heartbeat last;
  };

  double period() const {
    const double by_ranks = kPeriodPerRank * static_cast<double>(names_.size());
    return std::min(std::clamp(by_ranks, kMinPeriod, kMaxPeriod), limits_.silence / 4.0);
  }

  void watch() {
    auto last_tick = Clock::now();
    auto next_beat = last_tick;
    while (!leaves_.load()) {
      sockaddr_in from{};
      const std::string text = socket_.receive(static_cast<int>(250.0 * period()), from);
      const auto now = Clock::now();
      forgive(now - last_tick);
      last_tick = now;
      if (const auto heartbeat = parse_heartbeat(text, key_)) take(*heartbeat, from, now);
      note_changes(now);
      if (now < next_beat) continue;
      next_beat = now + std::chrono::duration_cast<Clock::duration>(
                            std::chrono::duration<double>(period()));
      beat(now);
      judge(now);
    }
    for (int i = 0; i < kRepeats; ++i) beat(Clock::now());
  }

  // A whole job that was stopped and goes on, or a machine that slept, is no silence.
  void forgive(Clock::duration gap) {
    if (std::chrono::duration<double>(gap).count() < std::max(1.0, 2.0 * period())) return;
    for (Peer& peer : peers_) peer.heard += gap;
    changed_ += gap;
    // What the others said before may be overtaken by now.
    judges_from_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                      std::chrono::duration<double>(limits_.silence));
  }

  void take(const Heartbeat& heartbeat, const sockaddr_in& from, Clock::time_point now) {
    if (heartbeat.kind == Heartbeat::Kind::verdict && rank_ != 0) end_process(rank_, "");
    if (heartbeat.rank < 0 || static_cast<std::size_t>(heartbeat.rank) >= peers_.size()) return;
    peers_[static_cast<std::size_t>(heartbeat.rank)] = {true, now, from, heartbeat};
    if (rank_ == 0 && !heartbeat.leaves) socket_.send(own_text(now), from);
  }

  void note_changes(Clock::time_point now) {
    const RankState state = activity_.state();
    if (state.changes != own_.changes) changed_ = now;
    own_ = state;
  }

  std::string own_text(Clock::time_point now) const {
    return to_text({.kind = Heartbeat::Kind::state,
                    .rank = rank_,
                    .leaves = leaves_.load(),
                    .idle = seconds_between(changed_, now),
                    .state = own_},
                   key_);
  }

  // Rank 0 answers and speaks by itself only when it leaves.
  void beat(Clock::time_point now) const {
    const std::string text = own_text(now);
    if (rank_ != 0) {
      if (peers_[0].was_heard)
        socket_.send(text, peers_[0].address);
      else
        for (const sockaddr_in& address : candidates_) socket_.send(text, address);
    } else if (leaves_.load()) {
      send_all(text);
    }
  }

  void send_all(const std::string& text) const {
    for (std::size_t r = 1; r < peers_.size(); ++r)
      if (peers_[r].was_heard) socket_.send(text, peers_[r].address);
  }

  RankSign sign_of(const Peer& peer, Clock::time_point now) const {
    const double silence = seconds_between(peer.heard, now);
    return {.has_left = peer.last.leaves,
            .was_heard = peer.was_heard,
            .silence = silence,
            .idle = peer.was_heard ? peer.last.idle + silence : 0.0,
            .state = peer.last.state};
  }
  RankSign own_sign(Clock::time_point now) const {
    return {.idle = seconds_between(changed_, now), .state = own_};
  }
  std::string describe(const std::vector<RankSign>& signs) const {
    const std::lock_guard lock(groups_mutex_);
    return describe_stuck(signs, groups_, names_, limits_);
  }

  void judge(Clock::time_point now) {
    if (now < judges_from_) return;
    if (rank_ == 0)
      judge_all(now);
    else if (peers_[0].was_heard)
      judge_root(now);
    else if (own_sign(now).idle >= limits_.idle)
      judge_self(now);
  }

  void judge_all(Clock::time_point now) {
    std::vector<RankSign> signs;
    std::vector<int> unheard;
    for (std::size_t r = 0; r < peers_.size(); ++r) {
      signs.push_back(r == 0 ? own_sign(now) : sign_of(peers_[r], now));
      if (r > 0 && !peers_[r].was_heard) unheard.push_back(static_cast<int>(r));
    }
    if (!unheard.empty() && !has_warned_ && seconds_between(started_, now) > kContact) {
      has_warned_ = true;
      write_error(
          concat("openmoe: warning: the watchdog of rank 0 hears nothing of ",
                 names_[static_cast<std::size_t>(unheard.front())], " and ", unheard.size() - 1,
                 " others; is UDP between the hosts closed? They watch themselves alone\n"));
    }
    const std::string verdict = describe(signs);
    // Twice in a row: one snapshot of ranks at different moments may mislead.
    const bool was_suspected = std::exchange(is_suspected_, !verdict.empty());
    if (verdict.empty() || !was_suspected) return;
    for (int i = 0; i < kRepeats; ++i)
      send_all(to_text(
          {.kind = Heartbeat::Kind::verdict, .rank = 0, .leaves = false, .idle = 0.0, .state = {}},
          key_));
    end_process(rank_, verdict);
  }

  void judge_root(Clock::time_point now) const {
    const RankSign root = sign_of(peers_[0], now);
    if (root.has_left || root.silence < limits_.silence + std::min(rank_ - 1, kDeputies)) return;
    std::vector<RankSign> signs(peers_.size());
    signs[0] = root;
    signs[static_cast<std::size_t>(rank_)] = own_sign(now);
    end_process(rank_, describe(signs));
  }

  void judge_self(Clock::time_point now) const {
    std::vector<RankSign> signs(peers_.size());
    signs[static_cast<std::size_t>(rank_)] = own_sign(now);
    if (own_.in_collective) return;  // a victim, as far as can be seen from here
    const std::string verdict = describe(signs);
    if (!verdict.empty()) end_process(rank_, verdict);
  }

  int rank_;
  const CollectiveObservers& observers_;  // of the main thread
  const RankActivity& activity_;
  StuckLimits limits_;
  HeartbeatSocket socket_;
  std::string key_;
  std::vector<sockaddr_in> candidates_;  // of rank 0, until it answers
  std::vector<std::string> names_;
  mutable std::mutex groups_mutex_;
  JobGroups groups_;
  std::atomic<bool> leaves_{false};
  // Of the thread from here on.
  std::vector<Peer> peers_;
  RankState own_;
  Clock::time_point changed_, started_, judges_from_;
  bool has_warned_ = false;
  bool is_suspected_ = false;
  std::thread thread_;
};

Watchdog::Watchdog(Communicator& world, const std::string& name,
                   const CollectiveObservers& observers, const RankActivity& activity,
                   const StuckLimits& limits)
    : impl_(std::make_unique<Impl>(world, name, observers, activity, limits)) {}

Watchdog::~Watchdog() = default;

void Watchdog::learn_groups(Communicator& world) {
  impl_->learn_groups(world);
}

}  // namespace openmoe
