#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

namespace {

void check_loss(std::int64_t n, std::int64_t V, float z_weight, float scale, bool with_token_loss) {
  INFO("n " << n << ", V " << V << ", scale " << scale);
  test::compare_backends(
      [=](OpRun& run) {
        std::vector<std::int32_t> target(static_cast<std::size_t>(n));
        std::vector<float> weight(target.size());
        for (std::size_t i = 0; i < target.size(); ++i) {
          target[i] = static_cast<std::int32_t>((i * 7919) % static_cast<std::size_t>(V));
          weight[i] = i % 3 == 1 ? 0.0f : 1.0f + static_cast<float>(i % 2);
        }
        const Tensor logits = run.normal("logits", {n, V}, 4.0),
                     targets = run.ints("targets", {n}, target);
        const Tensor weights = run.floats("weights", {n}, weight);
        const Tensor token_loss = with_token_loss ? run.poisoned("token_loss", {n}) : Tensor{};
        const LossSums sums =
            run.ops().softmax_cross_entropy(logits, targets, weights, token_loss, z_weight, scale);
        run.number("cross_entropy", sums.cross_entropy);
        run.number("log_z_square", sums.log_z_square);
        run.number("correct", sums.correct);
      },
      5e-6);
}

}  // namespace

TEST_CASE("cross-entropy: odd vocabularies, weights of zero, training and evaluation", "[cuda]") {
  for (const std::int64_t V : {1, 5, 32, 777, 4100}) {
    check_loss(7, V, 1e-3f, 0.25f, true);
    check_loss(7, V, 0.0f, 0.0f, false);
  }
  check_loss(0, 5, 0.0f, 1.0f, true);
}

TEST_CASE("cross-entropy: a tie is won by the lower id", "[cuda]") {
  test::compare_backends([](OpRun& run) {
    std::vector<float> row(700, -1.0f);
    row[650] = row[33] = row[400] = 2.0f;
    std::vector<float> logits = row;
    logits.insert(logits.end(), row.begin(), row.end());
    const Tensor weights = run.floats("weights", {2}, {1.0f, 1.0f});
    const LossSums sums = run.ops().softmax_cross_entropy(run.floats("logits", {2, 700}, logits),
                                                          run.ints("targets", {2}, {33, 400}),
                                                          weights, {}, 0.0f, 1.0f);
    CHECK(sums.correct == 1.0);
  });
}

TEST_CASE("cross-entropy: a bad target is reported, a NaN logit reaches the loss", "[cuda]") {
  const auto cuda = make_cuda_ops(0);
  OpRun run(*cuda);
  const Tensor weights = run.floats("weights", {2}, {1.0f, 1.0f}),
               targets = run.ints("targets", {2}, {0, 4});
  std::vector<float> logits(10, 0.0f);
  logits[3] = std::nanf("");
  const LossSums sums = cuda->softmax_cross_entropy(run.floats("logits", {2, 5}, logits), targets,
                                                    weights, {}, 0.0f, 1.0f);
  CHECK(std::isnan(sums.cross_entropy));
  CHECK_THROWS_WITH(
      cuda->softmax_cross_entropy(run.normal("few", {2, 4}), targets, weights, {}, 0.0f, 1.0f),
      Catch::Contains("target is outside the vocabulary"));
}
