#include "parallel/stuck_ranks.h"

#include <algorithm>
#include <cmath>

#include "core/base/check.h"

namespace openmoe {
namespace {

constexpr double kPatience = 10.0;  // of patient phases, and with ranks that show progress
constexpr std::size_t kMaxListed = 8;

class Judge {
 public:
  Judge(const std::vector<RankSign>& signs, const JobGroups& groups,
        const std::vector<std::string>& names, const StuckLimits& limits)
      : signs_(signs), groups_(groups), names_(names), limits_(limits) {}

  std::string verdict() const {
    const std::string of_heard = verdict_of_heard();
    if (!of_heard.empty()) return of_heard;
    const std::vector<int> idle =
        find([&](const RankSign& of) { return !of.has_left && is_idle(of); });
    const std::vector<int> unheard =
        find([&](const RankSign& of) { return !of.was_heard && is_silent(of); });
    if (idle.empty() || unheard.empty()) return "";
    return describe(unheard, [&](int r) { return unheard_text(r); });
  }

 private:
  std::string verdict_of_heard() const {
    const std::vector<int> silent =
        find([&](const RankSign& of) { return of.was_heard && is_silent(of); });
    if (!silent.empty()) return describe(silent, [&](int r) { return silent_text(r); });
    // A rank that computes, reads or loops is at fault itself; one in a collective may wait for
    // another.
    const std::vector<int> busy = find([&](const RankSign& sign) {
      return !sign.has_left && !sign.state.in_collective && is_idle(sign);
    });
    if (!busy.empty()) return describe(busy, [&](int r) { return busy_text(r); });
    return collective_verdict();
  }

  const RankSign& sign(int r) const { return signs_[static_cast<std::size_t>(r)]; }
  bool is_silent(const RankSign& of) const { return !of.has_left && of.silence >= limits_.silence; }
  bool is_idle(const RankSign& of) const {
    return of.idle >= limits_.idle * (of.state.is_patient ? kPatience : 1.0);
  }
  template <typename Condition>
  std::vector<int> find(const Condition& condition) const {
    std::vector<int> found;
    for (std::size_t r = 0; r < signs_.size(); ++r)
      if (condition(signs_[r])) found.push_back(static_cast<int>(r));
    return found;
  }
  int group_of(int r) const { return groups_.find(r, sign(r).state.group); }
  // Calls of a group that a rank of it has entered.
  std::int64_t entered(int r, int group) const {
    const auto& own = groups_.groups_of_rank[static_cast<std::size_t>(r)];
    const auto index =
        static_cast<std::size_t>(std::find(own.begin(), own.end(), group) - own.begin());
    const auto& counts = sign(r).state.entered;
    return index < counts.size() ? counts[index] : 0;
  }
  std::int64_t number(int r) const { return entered(r, group_of(r)); }

  // The ranks that have not entered the call that `r` is in.
  std::vector<int> missing(int r) const {
    std::vector<int> ranks;
    const int group = group_of(r);
    for (const int member : groups_.groups[static_cast<std::size_t>(group)].world_ranks)
      if (entered(member, group) < number(r)) ranks.push_back(member);
    return ranks;
  }

  // All that stand still are in collectives: follows who waits for whom.
  std::string collective_verdict() const {
    const std::vector<int> waiting = find(
        [&](const RankSign& of) { return !of.has_left && of.state.in_collective && is_idle(of); });
    for (const int start : waiting) {
      std::vector<int> path = {start};
      for (;;) {
        const int r = path.back();
        if (group_of(r) < 0) {
          // Whom it waits for cannot be told, and they may well make progress.
          if (sign(r).idle < kPatience * limits_.idle) break;
          return describe({r}, [&](int rank) { return unknown_text(rank); });
        }
        const std::vector<int> late = missing(r);
        if (late.empty()) return unfinished_text(r);
        const int next = late.front();
        if (sign(next).has_left) return left_text(next, r);
        const auto seen = std::find(path.begin(), path.end(), next);
        if (seen != path.end()) return circle_text({seen, path.end()});
        if (!sign(next).state.in_collective) {
          // It makes progress. That is slow, and stuck only in the end.
          if (sign(r).idle < kPatience * limits_.idle) break;
          return describe(late, [&](int rank) { return busy_text(rank); });
        }
        if (!is_idle(sign(next))) break;  // it got there just now
        path.push_back(next);
      }
    }
    return "";
  }

  std::string last_collective(int r) const {
    const int group = group_of(r);
    const RankState& state = sign(r).state;
    if (state.group < 0) return "no collective so far";
    if (group < 0) return concat(state.verb, " of a group that the watchdog does not know");
    const auto& of = groups_.groups[static_cast<std::size_t>(group)];
    return concat(state.verb, ", call ", number(r), " of group ", of.name, " (",
                  list_ranks(of.world_ranks), ")");
  }
  std::string place(int r) const {
    const RankState& state = sign(r).state;
    return concat(names_[static_cast<std::size_t>(r)],
                  state.step < 0 ? std::string() : concat(", step ", state.step), ", ",
                  state.phase);
  }
  std::string silent_text(int r) const {
    return concat(place(r), ": no sign of life for ", std::lround(sign(r).silence),
                  " s: its process was stopped or killed, or its host is gone; when last heard ",
                  sign(r).state.in_collective ? "in " : "after ", last_collective(r));
  }
  std::string unheard_text(int r) const {
    return concat(names_[static_cast<std::size_t>(r)], ": never heard of in ",
                  std::lround(sign(r).silence),
                  " s: its process was stopped or killed, its host is gone, or UDP does not reach "
                  "rank 0 from there");
  }
  std::string unknown_text(int r) const {
    return concat(place(r), ": ", std::lround(sign(r).idle), " s in ", last_collective(r),
                  ": one of its ranks does not enter the call, which cannot be told from here");
  }
  std::string busy_text(int r) const {
    return concat(place(r), ": no progress for ", std::lround(sign(r).idle),
                  " s outside collectives; last collective: ", last_collective(r));
  }
  std::string unfinished_text(int r) const {
    return concat("all ranks of the group entered the call, and it does not end: ", place(r), ", ",
                  std::lround(sign(r).idle), " s in ", last_collective(r),
                  ": the network between these ranks, or the MPI library");
  }
  std::string left_text(int r, int waiting) const {
    return concat(place(r), ": has left, and others still wait for it in ",
                  last_collective(waiting));
  }
  std::string circle_text(const std::vector<int>& circle) const {
    std::string text = "ranks wait for each other:";
    for (const int r : circle) text += concat("\n  ", place(r), ", in ", last_collective(r));
    return text;
  }
  // Of every rank at fault, and of those that wait for them.
  template <typename Text>
  std::string describe(const std::vector<int>& ranks, const Text& text_of) const {
    std::string text;
    for (std::size_t i = 0; i < ranks.size() && i < kMaxListed; ++i)
      text += (i > 0 ? "\n  " : "") + text_of(ranks[i]);
    if (ranks.size() > kMaxListed) text += concat("\n  and ", ranks.size() - kMaxListed, " more");
    std::vector<int> waiting;
    for (std::size_t r = 0; r < signs_.size(); ++r) {
      const bool is_named = std::find(ranks.begin(), ranks.end(), r) != ranks.end();
      if (!is_named && !signs_[r].has_left && signs_[r].state.in_collective)
        waiting.push_back(static_cast<int>(r));
    }
    if (!waiting.empty())
      text +=
          concat("\n  waiting: ", list_ranks(waiting), ", in ", last_collective(waiting.front()));
    return text;
  }

  const std::vector<RankSign>& signs_;
  const JobGroups& groups_;
  const std::vector<std::string>& names_;
  const StuckLimits& limits_;
};

}  // namespace

std::string list_ranks(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size() && i < kMaxListed; ++i)
    text += (i > 0 ? ", " : "") + std::to_string(ranks[i]);
  return ranks.size() > kMaxListed ? concat(text, ", ... (", ranks.size(), " ranks)") : text;
}

int JobGroups::find(int rank, int own_index) const {
  const auto& own = groups_of_rank[static_cast<std::size_t>(rank)];
  const bool is_known = own_index >= 0 && static_cast<std::size_t>(own_index) < own.size();
  return is_known ? own[static_cast<std::size_t>(own_index)] : -1;
}

std::string describe_stuck(const std::vector<RankSign>& signs, const JobGroups& groups,
                           const std::vector<std::string>& names, const StuckLimits& limits) {
  return Judge(signs, groups, names, limits).verdict();
}

}  // namespace openmoe
