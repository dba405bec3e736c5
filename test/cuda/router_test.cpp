#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

namespace {

struct Case {
  std::int64_t N, E, G, C;
  bool normalize;
};

RouterOutput make_output(OpRun& run, const Case& c) {
  const std::int64_t groups = c.N / c.G;
  return {run.poisoned("prob", {c.N, c.E}),          run.poisoned("log_z", {c.N}),
          run.unwritten_ints("choice", {c.N, 2}),    run.poisoned("gate", {c.N, 2}),
          run.unwritten_ints("slot", {c.N, 2}),      run.poisoned("group_picks", {groups, c.E}),
          run.poisoned("group_prob", {groups, c.E}), run.poisoned("group_routed", {groups}),
          run.poisoned("group_z", {groups})};
}

void check_router(const Case& c, const std::vector<float>& logits,
                  const std::vector<std::int32_t>& routed) {
  INFO("N " << c.N << ", E " << c.E << ", G " << c.G << ", C " << c.C << ", normalize "
            << c.normalize);
  test::compare_backends(
      [&](OpRun& run) {
        const RouterOptions options{
            .group_tokens = c.G, .capacity = c.C, .normalize_gates = c.normalize};
        const Tensor in = run.floats("logits", {c.N, c.E}, logits),
                     real = run.ints("routed", {c.N}, routed);
        const RouterOutput out = make_output(run, c);
        run.ops().router_forward(out, in, real, options);
        const Tensor dlogits = run.poisoned("dlogits", {c.N, c.E}),
                     dgate = run.normal("dgate", {c.N, 2});
        run.ops().router_backward(dlogits, dgate, real, out, {.balance = 0.3f, .z = 0.01f},
                                  options);
      },
      5e-6);
}

std::vector<float> random_logits(const Case& c) {
  const Rng rng(5, stream_id("logits"));
  std::vector<float> logits(static_cast<std::size_t>(c.N * c.E));
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>(2.0 * rng.normal_at(i));
  return logits;
}

std::vector<std::int32_t> all_but(std::int64_t N, std::int64_t every) {
  std::vector<std::int32_t> routed(static_cast<std::size_t>(N), 2);
  for (std::int64_t n = every - 1; n < N; n += every) routed[static_cast<std::size_t>(n)] = 0;
  return routed;
}

}  // namespace

TEST_CASE("router: experts below, at and above a warp; drops; groups longer than a block",
          "[cuda]") {
  for (const Case c :
       {Case{6, 2, 3, 2, false}, Case{12, 5, 6, 1, true}, Case{40, 32, 20, 3, false},
        Case{20, 70, 10, 1, true}, Case{600, 4, 300, 100, false}, Case{0, 4, 2, 1, false}}) {
    check_router(c, random_logits(c), all_but(c.N, c.N + 1));
    check_router(c, random_logits(c), all_but(c.N, 3));
  }
}

TEST_CASE("router: more groups than a grid has blocks for", "[cuda]") {
  const Case c{1040, 2, 2, 1, false};
  check_router(c, random_logits(c), all_but(c.N, 3));
}

TEST_CASE("router: ties go to the lower expert, and nobody routed leaves empty queues", "[cuda]") {
  const Case c{8, 6, 4, 2, false};
  std::vector<float> logits(48, 0.0f);
  for (std::size_t n = 4; n < 8; ++n) logits[n * 6 + 5] = logits[n * 6 + 2] = 1.0f;
  check_router(c, logits, all_but(8, 9));
  check_router(c, logits, std::vector<std::int32_t>(8, 0));
}

TEST_CASE("router: NaN logits keep the indices valid and reach the probabilities", "[cuda]") {
  const auto cuda = make_cuda_ops(0);
  OpRun run(*cuda);
  const Case c{3, 4, 3, 3, false};
  std::vector<float> logits(12, std::nanf(""));
  logits[4] = 1.0f;  // of the second token, one number among NaN
  logits[8] = logits[9] = logits[10] = logits[11] = 0.5f;
  const RouterOutput out = make_output(run, c);
  cuda->router_forward(out, run.floats("logits", {3, 4}, logits),
                       run.ints("routed", {3}, {1, 1, 1}), {.group_tokens = 3, .capacity = 3});
  for (const std::int32_t choice : run.read_ints(out.choice)) CHECK((choice >= 0 && choice < 4));
  const std::vector<float> prob = run.read_floats(out.prob);
  CHECK(std::isnan(prob[0]));
  CHECK(std::isnan(prob[4]));
  CHECK(prob[8] == Approx(0.25));
}
