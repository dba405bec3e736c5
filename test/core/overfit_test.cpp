// Whole training steps of a tiny model: one fixed batch must be learned by heart, and steps must
// give the same bits for any number of threads, with and without recomputation, and allocate
// nothing after the first.
#include <malloc.h>
#include <omp.h>

#include <cstring>
#include <map>
#include <vector>

#include <memory>

#include "core/arena.h"
#include "core/base/rng.h"
#include "core/cpu/cpu_ops.h"
#include "core/model/model.h"
#include "core/moe/local_exchange.h"
#include "core/train/adafactor.h"
#include "test/support/allocation_count.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

Recipe tiny_recipe(ComputeType compute = ComputeType::f32) {
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
  recipe.run.compute_type = compute;
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

// A model with its memory, and its steps on one batch.
class Learner {
 public:
  explicit Learner(const Recipe& recipe)
      : recipe_(recipe),
        batch_(random_batch(recipe)),
        counts_(count_batch(batch_, recipe.routing, true)),
        ops_(make_cpu_ops()),
        params_(recipe_.model, recipe_.optimizer),
        exchange_(Model::exchange_shape(recipe_, recipe.data.batch_rows, 1)),
        model_(*ops_, recipe_, params_, exchange_, tensor_, recipe.data.batch_rows),
        sums_(recipe.model.num_moe_layers(), recipe.model.num_experts) {
    Arena dry;
    allocate(dry);
    arena_ = std::make_unique<Arena>(*ops_, dry.used_bytes());
    allocate(*arena_);
    REQUIRE(arena_->used_bytes() == dry.used_bytes());
    params_.initialize(*ops_, 3);
  }

  void step() {
    const StepSums none(recipe_.model.num_moe_layers(), recipe_.model.num_experts);
    sums_ = none;
    run_step();
  }
  // Without what belongs to the caller: fresh sums.
  void run_step() {
    for (Param& param : params_.params()) ops_->zero(param.grad);
    model_.train(batch_, counts_, sums_);
    adafactor_step(*ops_, tensor_, params_, recipe_.optimizer, next_step_++);
  }
  StepLosses losses() const { return losses_from(sums_, counts_, recipe_.loss); }
  std::int64_t activation_bytes() const { return arena_->used_bytes(MemoryCategory::activations); }
  std::vector<float> values() const {
    std::vector<float> all;
    for (const Param& param : params_.params()) {
      const float* data = param.value.as<float>();
      all.insert(all.end(), data, data + param.value.num_elements());
    }
    return all;
  }

 private:
  void allocate(Arena& arena) {
    params_.allocate(arena, GradientMemory::whole, recipe_.run.compute_type);
    model_.allocate(arena, true);
  }

  Recipe recipe_;
  Batch batch_;
  BatchCounts counts_;
  std::unique_ptr<Ops> ops_;
  ParamTable params_;
  LocalExchange exchange_;
  LocalTensorGroup tensor_;
  Model model_;
  StepSums sums_;
  std::unique_ptr<Arena> arena_;
  std::int64_t next_step_ = 0;
};

// What is left of a run.
struct Trained {
  std::vector<float> values;
  std::vector<double> losses;  // of each step
  std::int64_t bytes = 0;      // of the activations
};

Trained trained(const Recipe& recipe, int steps, int threads) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  Learner learner(recipe);
  Trained result;
  for (int step = 0; step < steps; ++step) {
    learner.step();
    result.losses.push_back(learner.losses().total);
  }
  omp_set_num_threads(before);
  result.values = learner.values();
  result.bytes = learner.activation_bytes();
  return result;
}

std::vector<float> values_after(const Recipe& recipe, int steps, int threads) {
  return trained(recipe, steps, threads).values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

constexpr ComputeType kTypes[] = {ComputeType::f32, ComputeType::bf16};

}  // namespace

TEST_CASE("one batch overfits to near zero") {
  for (const ComputeType compute : kTypes) {
    INFO((compute == ComputeType::f32 ? "f32" : "bf16"));
    Learner learner(tiny_recipe(compute));
    learner.step();
    CHECK(learner.losses().cross_entropy > 3.0);
    for (int step = 1; step < 400; ++step) learner.step();
    CHECK(learner.losses().cross_entropy < 0.05);
    CHECK(learner.losses().accuracy == 1.0);
  }
}

TEST_CASE("training steps give the same bits for any number of threads") {
  for (const ComputeType compute : kTypes) {
    INFO((compute == ComputeType::f32 ? "f32" : "bf16"));
    Recipe recipe = tiny_recipe(compute);
    recipe.model.d_model = 96;  // products large enough to be split
    recipe.model.ffn_dim = 320;
    const std::vector<float> one = values_after(recipe, 3, 1);
    for (const int threads : {2, 3}) CHECK(same_bits(one, values_after(recipe, 3, threads)));
  }
}

TEST_CASE("recomputation changes no bit, and needs less memory the more it covers") {
  for (const ComputeType compute : kTypes)
    for (const ResidualFfn residual : {ResidualFfn::sequential, ResidualFfn::parallel})
      for (const std::int64_t moe_interval : {1, 2}) {
        Recipe recipe = tiny_recipe(compute);
        recipe.model.num_layers = 4;
        recipe.model.residual_ffn = residual;
        recipe.model.moe_interval = moe_interval;
        INFO(static_cast<int>(compute) << " " << static_cast<int>(residual) << " " << moe_interval);
        const Trained kept = trained(recipe, 3, 2);
        std::map<Recompute, std::int64_t> bytes;
        for (const Recompute kind : {Recompute::ffn, Recompute::attention, Recompute::block}) {
          recipe.parallel.recompute = kind;
          const Trained again = trained(recipe, 3, 2);
          CHECK(same_bits(kept.values, again.values));
          CHECK(kept.losses == again.losses);
          bytes[kind] = again.bytes;
        }
        CHECK(bytes[Recompute::ffn] < kept.bytes);
        CHECK(bytes[Recompute::attention] < kept.bytes);
        CHECK(bytes[Recompute::block] < bytes[Recompute::ffn]);
        CHECK(bytes[Recompute::block] < bytes[Recompute::attention]);
      }
}

TEST_CASE("a training step allocates nothing after the first") {
  for (const ComputeType compute : kTypes)
    for (const bool route_padding : {false, true}) {
      Recipe recipe = tiny_recipe(compute);
      recipe.routing.route_padding = route_padding;
      Learner learner(recipe);
      learner.run_step();
      const long allocations = test::g_num_allocations;
      const auto heap = mallinfo2();
      for (int step = 0; step < 3; ++step) learner.run_step();
      CHECK(test::g_num_allocations == allocations);
      // What C code and the kernels' own blocks take from malloc.
      CHECK(mallinfo2().uordblks == heap.uordblks);
      CHECK(mallinfo2().hblkhd == heap.hblkhd);
    }
}

}  // namespace openmoe
