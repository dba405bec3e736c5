// Memory of a rank of a planned job, and what would make a job fit that does not.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/arena.h"
#include "core/config/recipe.h"
#include "parallel/rehearsal_world.h"

namespace openmoe {

// Grid of `ranks` ranks; throws UserError where it cannot be, or does not suit the recipe.
RehearsalGrid planned_grid(const Recipe& recipe, std::int64_t ranks, std::int64_t ep,
                           std::int64_t tp);

// What train allocates on a rank of this grid, into `dry`.
void size_rank(Arena& dry, const Recipe& recipe, const RehearsalGrid& grid);

struct FittingChange {
  std::string what;  // options and keys, in place of those of the same name that were given
  std::int64_t bytes = 0;
};

// The first of these that needs at most `bytes` on a rank and is a recipe and grid that train
// takes: recompute, the kind of the least arithmetic; the most micro_batch_rows;
// update_in_backward; ep or tp up by the least factor on the same ranks; some of them together;
// twice the ranks, as they are or with more ep or tp, and so on to 4096.
std::optional<FittingChange> find_fitting_change(const Recipe& recipe, const RehearsalGrid& grid,
                                                 double bytes);

}  // namespace openmoe
