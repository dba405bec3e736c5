// GradientReducer on every grid: gradients are integers small enough that sums are exact.
#include <cmath>
#include <memory>
#include <vector>

#include "core/cpu/cpu_ops.h"
#include "parallel/gradient_reducer.h"
#include "test/support/ranks.h"

namespace openmoe::test {
namespace {

// 12 experts, so that every ep up to 6 but 5 divides them.
ModelConfig small_model(bool dense) {
  ModelConfig model;
  model.vocab_size = 37;
  model.num_layers = 2;
  model.d_model = 6;
  model.num_heads = 1;
  model.head_dim = 4;
  model.ffn_dim = 5;
  model.num_experts = 12;
  model.moe_interval = dense ? 0 : 2;
  return model;
}

// The gradient that a world rank adds to one element of one parameter.
float gradient(int world_rank, std::size_t param, std::int64_t global_element) {
  return static_cast<float>(
      (world_rank * 5 + static_cast<int>(param) * 3 + static_cast<int>(global_element % 97)) % 11 -
      5);
}

// First global element of the local slice.
std::int64_t first_element(const Param& param) {
  return param.local_begin * (param.global_shape.num_elements() / param.global_shape[0]);
}

void check_grid(std::int64_t ep, bool dense) {
  Communicator& world = mpi().world();
  ProcessGrid grid(world, ep, 1);
  const auto ops = make_cpu_ops();
  ParamTable table(small_model(dense), OptimizerConfig{}, {.ep = ep, .ep_rank = grid.ep_rank()});
  Arena dry;
  table.allocate(dry, GradientMemory::whole);
  Arena arena(*ops, dry.used_bytes());
  table.allocate(arena, GradientMemory::whole);
  GradientReducer reducer(*ops, table, grid);
  for (Param& param : table.params())
    std::fill_n(param.grad.as<float>(), param.grad.num_elements(), 1e30f);
  table.zero_gradients(*ops);
  REQUIRE_ALL_RANKS(reducer.grad_norm() == 0.0);

  const auto fill = [&] {
    for (std::size_t p = 0; p < table.params().size(); ++p) {
      Param& param = table.params()[p];
      const std::int64_t first = first_element(param);
      for (std::int64_t i = 0; i < param.grad.num_elements(); ++i)
        param.grad.as<float>()[i] = gradient(grid.world_rank(), p, first + i);
    }
  };
  fill();
  reducer.reduce();
  bool right = true;
  double squares = 0.0;  // of the whole model
  for (std::size_t p = 0; p < table.params().size(); ++p) {
    const Param& param = table.params()[p];
    const bool is_expert = param.sharding == Sharding::expert;
    for (std::int64_t i = 0; i < param.global_shape.num_elements(); ++i) {
      // The rank that holds this element of a stack, among the ep ranks.
      const std::int64_t holder = is_expert ? i / param.local_shape.num_elements() : grid.ep_rank();
      float sum = 0.0f;
      for (int r = 0; r < world.size(); ++r)
        if (!is_expert || r % ep == holder) sum += gradient(r, p, i);
      squares += static_cast<double>(sum) * static_cast<double>(sum);
      if (holder == grid.ep_rank())
        right = right && param.grad.as<float>()[i - first_element(param)] == sum;
    }
  }
  REQUIRE_ALL_RANKS(right);
  const double norm = reducer.grad_norm();
  REQUIRE_ALL_RANKS(norm == Approx(std::sqrt(squares)).epsilon(1e-12));
  std::string of_root(reinterpret_cast<const char*>(&norm), sizeof norm);
  const std::string here = of_root;
  world.broadcast(of_root, 0);
  REQUIRE_ALL_RANKS(here == of_root);

  // In buckets, as a backward pass completes them: the same, twice in a row.
  std::vector<std::vector<float>> reduced;
  for (const Param& param : table.params()) {
    const float* const grad = param.grad.as<float>();
    reduced.emplace_back(grad, grad + param.grad.num_elements());
  }
  for (const std::int64_t bucket_bytes : {1, 300, 1 << 20}) {
    GradientReducer buckets(*ops, table, grid, bucket_bytes);
    REQUIRE_ALL_RANKS(buckets.has_buckets() == (world.size() > 1));
    for (int step = 0; step < 2; ++step) {
      fill();
      for (auto param = table.params().rbegin(); param != table.params().rend(); ++param)
        if (param->sharding == Sharding::expert) {
          const std::int64_t half = param->local_shape[0] / 2;
          buckets.complete(param->slice(0, half));
          buckets.complete(param->slice(half, param->local_shape[0]));
        } else {
          buckets.complete(*param);
        }
      buckets.finish();
      bool same = true;
      for (std::size_t p = 0; p < reduced.size(); ++p)
        same = same &&
               std::equal(reduced[p].begin(), reduced[p].end(), table.params()[p].grad.as<float>());
      REQUIRE_ALL_RANKS(same);
    }
    REQUIRE_ALL_RANKS(buckets.grad_norm() == Approx(norm).epsilon(1e-12));
  }
}

}  // namespace

TEST_CASE("dense gradients are summed over all ranks, those of experts over their replicas") {
  for (std::int64_t ep = 1; ep <= mpi().world_size(); ++ep)
    if (mpi().world_size() % ep == 0) {
      INFO("ep " << ep);
      check_grid(ep, false);
      check_grid(ep, true);
    }
}

}  // namespace openmoe::test
