// A run that starts from the weights of another one (train --from), as the recipe's "start" says:
// fine-tuning, a change of data, or a dense model whose FFNs become experts.
#pragma once

#include <string>

#include "apps/checkpoint.h"
#include "core/config/recipe.h"
#include "core/param_table.h"
#include "parallel/process_grid.h"

namespace openmoe {

// Fills the host tensors of `table`, which must be initialised: routers that the source lacks keep
// their initial values. `folder`: a run (its latest checkpoint) or a checkpoint. Returns what the
// source says of itself. Collective over the world; throws the same UserError on every rank when
// the source does not fit the recipe.
//
// Upcycling (Komatsuzaki et al. 2023): in a layer that is dense in the source and MoE here, every
// expert is a copy of the dense FFN, plus start.expert_noise times its RMS times a standard normal
// value of its own, and so, without noise, is the fixed FFN beside them, with a copy of its norm.
// Gates being raw probabilities, the copies add to what the dense model computed by about 2/E at
// first.
CheckpointMeta start_from(const std::string& folder, ParamTable& table, const Recipe& recipe,
                          ProcessGrid& grid);

}  // namespace openmoe
