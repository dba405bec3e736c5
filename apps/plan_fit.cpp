#include "apps/plan_fit.h"

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "apps/network.h"
#include "apps/plan_step.h"
#include "apps/training_step.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/enum_names.h"
#include "core/config/recipe_check.h"
#include "parallel/planned_group.h"
#include "parallel/process_grid.h"

namespace openmoe {
namespace {

constexpr std::int64_t kMaxRanks = 4096;

// A recipe on a grid, and how to ask for it.
struct Candidate {
  Recipe recipe;
  std::int64_t ranks = 1, ep = 1, tp = 1;
  std::int64_t ranks_per_host = 0;
  std::string what;

  Candidate with(const std::string& change) const {
    Candidate changed = *this;
    changed.what += (what.empty() ? "" : " ") + change;
    return changed;
  }
};

// Whether `train` would take it: its keys do not contradict each other.
bool is_valid(const Recipe& recipe) {
  ConfigErrors errors;
  check_recipe(recipe, errors, [](const std::string&) { return std::string(); });
  return errors.empty();
}

// Bytes of a rank; none where the recipe contradicts itself or does not suit the grid.
std::optional<std::int64_t> bytes_of(const Candidate& candidate) {
  if (!is_valid(candidate.recipe)) return std::nullopt;
  try {
    RehearsalGrid grid =
        planned_grid(candidate.recipe, candidate.ranks, candidate.ep, candidate.tp);
    grid.ranks_per_host = candidate.ranks_per_host;
    Arena dry;
    size_rank(dry, candidate.recipe, grid);
    return dry.used_bytes();
  } catch (const UserError&) {
    return std::nullopt;
  }
}

Candidate recomputing(const Candidate& from, Recompute kind) {
  if (from.recipe.parallel.recompute == kind) return from;
  Candidate changed = from.with(concat("--set parallel.recompute=", enum_name(kind)));
  changed.recipe.parallel.recompute = kind;
  return changed;
}

// Adds up arithmetic, and hears nothing else.
class FlopsOfStep : public StepListener {
 public:
  double flops() const { return flops_; }
  void on_work(const OpWork& work) override { flops_ += times_ * work.flops; }
  void on_repeat(std::int64_t times) override { times_ = static_cast<double>(times); }
  void begin_collective(const CollectiveCall&) override {}
  void end_collective(const CollectiveCall&) override {}
  void add(const char*, double) override {}
  void enter(const char*) override {}

 private:
  double flops_ = 0.0, times_ = 1.0;
};

double flops_of(const Recipe& recipe, const RehearsalGrid& grid) {
  FlopsOfStep listener;
  rehearse_step(recipe, grid,
                balanced_rows(recipe, grid, micro_batch_rows(recipe, grid.num_data_ranks())),
                listener);
  return listener.flops();
}

// Those of more arithmetic than the recipe's, the least first.
std::vector<Recompute> costlier_kinds(const Recipe& recipe, const RehearsalGrid& grid) {
  const double now = flops_of(recipe, grid);
  std::vector<std::pair<double, Recompute>> kinds;
  for (const Recompute kind : {Recompute::ffn, Recompute::attention, Recompute::block}) {
    Recipe changed = recipe;
    changed.parallel.recompute = kind;
    const double flops = flops_of(changed, grid);
    if (flops > now) kinds.emplace_back(flops, kind);
  }
  std::sort(kinds.begin(), kinds.end());
  std::vector<Recompute> sorted;
  for (const auto& [flops, kind] : kinds) sorted.push_back(kind);
  return sorted;
}

// With what would stand in its way switched off.
Candidate updating_in_backward(const Candidate& from) {
  if (from.recipe.parallel.update_in_backward) return from;
  Candidate changed = from.with("--set parallel.update_in_backward=true");
  ParallelConfig& parallel = changed.recipe.parallel;
  if (std::exchange(parallel.micro_batch_rows, 0) > 0)  // it needs all rows at once
    changed = changed.with("--set parallel.micro_batch_rows=0");
  if (std::exchange(parallel.reduction_bucket_kb, 0) > 0)
    changed = changed.with("--set parallel.reduction_bucket_kb=0");
  if (std::exchange(parallel.shard_update, false))
    changed = changed.with("--set parallel.shard_update=false");
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
// that of more ep, whose traffic is less. More ep leaves a dense model as it is.
std::vector<Candidate> wider_grids(const Candidate& from, std::int64_t ranks) {
  const std::int64_t most_ep = from.recipe.model.num_moe_layers() > 0 ? ranks : from.ep;
  std::vector<Candidate> grids;
  for (std::int64_t ep = 1; ep <= most_ep; ep *= 2)
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
  // `kinds` of recomputation to try, the cheapest first.
  Search(double bytes, std::vector<Recompute> kinds) : bytes_(bytes), kinds_(std::move(kinds)) {}

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
  void test_recomputing(const Candidate& from) {
    for (const Recompute kind : kinds_) test(recomputing(from, kind));
  }
  void test_all_of(const Candidate& grid) {
    test(grid);
    test_recomputing(grid);
    test_falling(smaller_micro_batches(grid));
    for (const Recompute kind : kinds_)
      test_falling(smaller_micro_batches(recomputing(grid, kind)));
    test_recomputing(updating_in_backward(grid));
  }

 private:
  double bytes_;
  std::vector<Recompute> kinds_;
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
  size_network(dry, recipe, grid, micro_batch_rows(recipe, grid.num_data_ranks()), true);
}

std::optional<FittingChange> find_fitting_change(const Recipe& recipe, const RehearsalGrid& grid,
                                                 double bytes) {
  const Candidate now{recipe, grid.ranks(), grid.ep, grid.tp, grid.ranks_per_host, ""};
  Search search(bytes, costlier_kinds(recipe, grid));
  search.test_recomputing(now);
  search.test_falling(smaller_micro_batches(now));
  search.test(updating_in_backward(now));
  search.test(wider_grids(now, now.ranks));
  search.test_all_of(now);
  for (std::int64_t ranks = now.ranks; ranks <= kMaxRanks && !search.found(); ranks *= 2) {
    if (ranks > now.ranks) search.test_all_of(on_grid(now, ranks, now.ep, now.tp));
    for (const Candidate& wider : wider_grids(now, ranks)) {
      if (search.found()) break;
      search.test_all_of(wider);
    }
  }
  return search.result();
}

}  // namespace openmoe
