// logits_tool RUN_OR_CHECKPOINT BATCH.h5 LOGITS.h5: evaluates one batch with a checkpoint and
// writes its logits, for tests that compare them with another implementation. BATCH.h5 holds inputs
// and segment_ids (B, T); LOGITS.h5 gets logits (B, T, V).
#include <algorithm>
#include <cstdio>
#include <exception>
#include <vector>

#include "apps/checkpoint.h"
#include "apps/network.h"
#include "core/config/recipe_io.h"
#include "core/cpu/cpu_ops.h"
#include "data/h5_file.h"
#include "parallel/mpi_environment.h"
#include "parallel/process_grid.h"

namespace openmoe {
namespace {

void run(MpiEnvironment& mpi, const std::string& folder, const std::string& batch_path,
         const std::string& out_path) {
  const std::string checkpoint = find_checkpoint(folder);
  Recipe recipe = parse_recipe(read_checkpoint_meta(checkpoint).recipe_json, checkpoint);
  const H5File in(batch_path, H5File::Mode::read);
  const Shape shape = in.info("inputs").shape;
  recipe.data.sequence_length = shape[1];
  Batch batch;
  batch.resize(shape[0], shape[1]);
  in.read("inputs", host_view(batch.inputs.data(), shape));
  in.read("segment_ids", host_view(batch.segment_ids.data(), shape));
  std::fill(batch.loss_weights.begin(), batch.loss_weights.end(), 1.0f);

  ProcessGrid grid(mpi.world(), 1, 1);
  const auto ops = make_cpu_ops();
  Network network(*ops, grid, recipe, shape[0], false);
  load_checkpoint(checkpoint, network.params(), grid, false);
  const std::int64_t vocabulary = recipe.model.vocab_size;
  std::vector<float> logits(static_cast<std::size_t>(shape.num_elements() * vocabulary));
  network.model().observe_logits([&](std::int64_t first, Tensor chunk) {
    ops->copy(host_view(logits.data() + first * vocabulary, chunk.shape), chunk);
  });
  StepSums sums(recipe.model.num_moe_layers(), recipe.model.num_experts);
  network.model().evaluate(batch, sums);
  H5File out(out_path, H5File::Mode::create);
  out.write("logits", host_view(logits.data(), {shape[0], shape[1], vocabulary}));
  out.close();
}

}  // namespace
}  // namespace openmoe

int main(int argc, char** argv) {
  try {
    openmoe::MpiEnvironment mpi(&argc, &argv);
    if (argc != 4) {
      std::fprintf(stderr, "usage: logits_tool RUN_OR_CHECKPOINT BATCH.h5 LOGITS.h5\n");
      return 2;
    }
    openmoe::run(mpi, argv[1], argv[2], argv[3]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "logits_tool: %s\n", error.what());
    return 1;
  }
}
