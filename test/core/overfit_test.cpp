// One fixed batch must be learned by heart: the whole chain of forward, backward and optimizer
// works towards one end.
#include "core/arena.h"
#include "core/base/rng.h"
#include "core/cpu/cpu_ops.h"
#include "core/model/model.h"
#include "core/moe/local_exchange.h"
#include "core/train/adafactor.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

Recipe tiny_recipe() {
  Recipe recipe;
  recipe.model.vocab_size = 61;
  recipe.model.num_layers = 2;
  recipe.model.d_model = 32;
  recipe.model.num_heads = 2;
  recipe.model.head_dim = 16;
  recipe.model.ffn_dim = 48;
  recipe.model.num_experts = 4;
  recipe.model.moe_interval = 2;
  recipe.routing.group_tokens = 32;
  recipe.data.sequence_length = 32;
  recipe.data.batch_rows = 4;
  recipe.optimizer.peak_learning_rate = 0.02;
  recipe.optimizer.warmup_steps = 100;
  return recipe;
}

Batch random_batch(const Recipe& recipe) {
  Batch batch;
  batch.resize(recipe.data.batch_rows, recipe.data.sequence_length);
  Rng rng(7, stream_id("overfit"));
  for (std::size_t i = 0; i < batch.inputs.size(); ++i) {
    const bool first = i % 32 == 0;
    batch.targets[i] = static_cast<std::int32_t>(2 + rng.next_below(59));
    batch.inputs[i] = first ? 0 : batch.targets[i - 1];
    batch.loss_weights[i] = 1.0f;
    batch.segment_ids[i] = 1;
  }
  // The first input of a row is 0 for every row: the first target can only be guessed, so it
  // carries no loss.
  for (std::size_t i = 0; i < batch.inputs.size(); i += 32) batch.loss_weights[i] = 0.0f;
  return batch;
}

}  // namespace

TEST_CASE("one batch overfits to near zero") {
  const Recipe recipe = tiny_recipe();
  const Batch batch = random_batch(recipe);
  const auto ops = make_cpu_ops();
  ParamTable params(recipe.model, recipe.optimizer, 1, 0);
  LocalExchange exchange(Model::exchange_shape(recipe, 4));
  Model model(*ops, recipe, params, exchange, 4);
  Arena dry;
  params.allocate(dry, true);
  model.allocate(dry, true);
  Arena arena(*ops, dry.used_bytes());
  params.allocate(arena, true);
  model.allocate(arena, true);
  REQUIRE(arena.used_bytes() == dry.used_bytes());
  params.initialize(*ops, 3);

  const BatchCounts counts = count_batch(batch, recipe.routing, true);
  StepLosses first, last;
  for (std::int64_t step = 0; step < 400; ++step) {
    StepSums sums(1, 4);
    for (Param& param : params.params()) ops->zero(param.grad);
    model.train(batch, counts, sums);
    adafactor_step(*ops, params, recipe.optimizer, step);
    last = losses_from(sums, counts, recipe.loss);
    if (step == 0) first = last;
  }
  CHECK(first.cross_entropy > 3.0);
  CHECK(last.cross_entropy < 0.05);
  CHECK(last.accuracy == 1.0);
}

}  // namespace openmoe
