#include "apps/plan_fit.h"

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "apps/network.h"
#include "apps/plan_step.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "parallel/planned_group.h"
#include "parallel/process_grid.h"

namespace openmoe {
namespace {

constexpr std::int64_t kMaxRanks = 4096;

// A recipe on a grid, and how to ask for it.
struct Candidate {
  Recipe recipe;
  std::int64_t ranks = 1, ep = 1, tp = 1;
  std::string what;

  Candidate with(const std::string& change) const {
    Candidate changed = *this;
    changed.what += (what.empty() ? "" : " ") + change;
    return changed;
  }
};

// Bytes of a rank; none where the recipe does not suit the grid.
std::optional<std::int64_t> bytes_of(const Candidate& candidate) {
  try {
    const RehearsalGrid grid =
        planned_grid(candidate.recipe, candidate.ranks, candidate.ep, candidate.tp);
    Arena dry;
    size_rank(dry, candidate.recipe, grid);
    return dry.used_bytes();
  } catch (const UserError&) {
    return std::nullopt;
  }
}

Candidate recomputing(const Candidate& from) {
  if (from.recipe.parallel.recompute_ffn) return from;
  Candidate changed = from.with("--set parallel.recompute_ffn=true");
  changed.recipe.parallel.recompute_ffn = true;
  return changed;
}

Candidate updating_in_backward(const Candidate& from) {
  if (from.recipe.parallel.update_in_backward) return from;
  Candidate changed = from.with("--set parallel.update_in_backward=true");
  if (from.recipe.parallel.micro_batch_rows > 0) {  // it needs all rows at once
    changed = changed.with("--set parallel.micro_batch_rows=0");
    changed.recipe.parallel.micro_batch_rows = 0;
  }
  changed.recipe.parallel.update_in_backward = true;
  return changed;
}

// Fewer rows at once, the most first.
std::vector<Candidate> smaller_micro_batches(const Candidate& from) {
  const std::int64_t rows = from.recipe.data.batch_rows * from.tp / from.ranks;
  const std::int64_t now = from.recipe.parallel.micro_batch_rows;
  std::vector<Candidate> smaller;
  for (std::int64_t parts = 2; parts <= rows; ++parts) {
    const std::int64_t micro = rows / parts;
    if (rows % parts != 0 || (now > 0 && micro >= now)) continue;
    Candidate changed = from.with(concat("--set parallel.micro_batch_rows=", micro));
    changed.recipe.parallel.micro_batch_rows = micro;
    smaller.push_back(changed);
  }
  return smaller;
}

Candidate on_grid(const Candidate& from, std::int64_t ranks, std::int64_t ep, std::int64_t tp) {
  std::string what;
  const auto add = [&](const char* option, std::int64_t value) {
    what += concat(what.empty() ? "" : " ", option, " ", value);
  };
  if (ranks != from.ranks) add("--ranks", ranks);
  if (ep != from.ep) add("--ep", ep);
  if (tp != from.tp) add("--tp", tp);
  Candidate changed = from.with(what);
  changed.ranks = ranks;
  changed.ep = ep;
  changed.tp = tp;
  return changed;
}

std::int64_t factors_of_two(std::int64_t from, std::int64_t to) {
  const std::int64_t ratio = std::max(from, to) / std::min(from, to);
  return std::bit_width(static_cast<std::uint64_t>(ratio)) - 1;
}

// Grids of `ranks` ranks with more ep or more tp than `from`, the least changed first; of equals
// that of more ep, whose traffic is less.
std::vector<Candidate> wider_grids(const Candidate& from, std::int64_t ranks) {
  std::vector<Candidate> grids;
  for (std::int64_t ep = 1; ep <= ranks; ep *= 2)
    for (std::int64_t tp = from.tp; ep * tp <= ranks; tp *= 2)
      if (ranks % (ep * tp) == 0 && (ep > from.ep || tp > from.tp))
        grids.push_back(on_grid(from, ranks, ep, tp));
  std::stable_sort(grids.begin(), grids.end(), [&](const Candidate& a, const Candidate& b) {
    const auto changes = [&](const Candidate& grid) {
      return factors_of_two(from.ep, grid.ep) + factors_of_two(from.tp, grid.tp);
    };
    return std::pair(changes(a), b.ep) < std::pair(changes(b), a.ep);
  });
  return grids;
}

class Search {
 public:
  explicit Search(double bytes) : bytes_(bytes) {}

  bool found() const { return found_.has_value(); }
  const std::optional<FittingChange>& result() const { return found_; }

  void test(const Candidate& candidate) {
    if (found() || candidate.what.empty()) return;
    const auto bytes = bytes_of(candidate);
    if (bytes && static_cast<double>(*bytes) <= bytes_) found_ = {candidate.what, *bytes};
  }
  void test(const std::vector<Candidate>& candidates) {
    for (const Candidate& candidate : candidates) test(candidate);
  }
  // The last of these is the smallest; if it does not fit, none does.
  void test_falling(const std::vector<Candidate>& candidates) {
    for (auto at = candidates.rbegin(); at != candidates.rend() && !found(); ++at) {
      if (!bytes_of(*at)) continue;  // not a choice of this grid
      test(*at);
      if (!found()) return;
      found_.reset();
      test(candidates);
    }
  }
  void test_all_of(const Candidate& grid) {
    test(grid);
    test(recomputing(grid));
    test_falling(smaller_micro_batches(grid));
    test_falling(smaller_micro_batches(recomputing(grid)));
    test(updating_in_backward(recomputing(grid)));
  }

 private:
  double bytes_;
  std::optional<FittingChange> found_;
};

}  // namespace

RehearsalGrid planned_grid(const Recipe& recipe, std::int64_t ranks, std::int64_t ep,
                           std::int64_t tp) {
  const auto world = make_planned_group(static_cast<int>(ranks));
  const ProcessGrid grid(*world, ep, tp);
  grid.check(recipe);
  return {grid.dp(), grid.ep(), grid.tp(), 0};
}

void size_rank(Arena& dry, const Recipe& recipe, const RehearsalGrid& grid) {
  size_network(dry, recipe, grid, micro_batch_rows(recipe, grid), true);
}

std::optional<FittingChange> find_fitting_change(const Recipe& recipe, const RehearsalGrid& grid,
                                                 double bytes) {
  const Candidate now{recipe, grid.ranks(), grid.ep, grid.tp, ""};
  Search search(bytes);
  search.test(recomputing(now));
  search.test_falling(smaller_micro_batches(now));
  search.test(updating_in_backward(now));
  search.test(wider_grids(now, now.ranks));
  search.test_all_of(now);
  for (std::int64_t ranks = now.ranks; ranks <= kMaxRanks && !search.found(); ranks *= 2)
    for (const Candidate& wider : wider_grids(now, ranks)) {
      if (search.found()) break;
      search.test_all_of(wider);
    }
  return search.result();
}

}  // namespace openmoe
