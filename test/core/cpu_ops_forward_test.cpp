// Forward ops of the CPU backend against the reference in f64, at odd sizes. Outputs start as NaN,
// so that anything left unwritten is seen.
#include <cmath>
#include <vector>

#include "core/cpu/cpu_ops.h"
#include "core/ref/attention.h"
#include "core/ref/cross_entropy.h"
#include "core/ref/embedding.h"
#include "core/ref/expert_rows.h"
#include "core/ref/ffn.h"
#include "core/ref/linear.h"
#include "core/ref/norm.h"
#include "core/ref/rope.h"
#include "core/ref/router.h"
#include "test/core/ops_test_support.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

using namespace test;

constexpr double kTolerance = 2e-6;
const std::vector<std::int64_t> kCounts{0, 1, 3, 17, 130};
const std::vector<std::int64_t> kWidths{1, 3, 16, 17, 33, 100};

std::size_t length(std::int64_t a, std::int64_t b = 1, std::int64_t c = 1) {
  return static_cast<std::size_t>(a * b * c);
}

TEST_CASE("cpu ops: embedding, copy, add, multiply and sum of squares") {
  const auto ops = make_cpu_ops();
  Random random(1);
  for (const std::int64_t N : kCounts)
    for (const std::int64_t D : kWidths) {
      INFO("N " << N << " D " << D);
      const std::int64_t V = 11;
      const Floats table = random.normal(V * D);
      const Ints ids = random.integers(N, 0, V - 1);
      const Buffer x(*ops, {N, D});
      ops->embedding_forward(x, Buffer(*ops, {V, D}, table), Buffer(*ops, {N}, ids));
      Floats expected(length(N, D));
      ref::embedding_forward(expected.data(), table.data(), ids.data(), N, D);
      CHECK(x.values() == expected);

      const Floats a = random.normal(N * D), b = random.normal(N * D);
      const Buffer y(*ops, {N, D}, a);
      ops->add_accumulate(y, Buffer(*ops, {N, D}, b));
      ops->multiply(y, 0.5f);
      double squares = 0;
      for (std::size_t i = 0; i < a.size(); ++i) {
        expected[i] = 0.5f * (a[i] + b[i]);
        squares += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
      }
      CHECK(y.values() == expected);
      CHECK(ops->sum_of_squares(y) == Approx(squares).epsilon(1e-6));
      ops->zero(y);
      CHECK(y.values() == Floats(length(N, D), 0.0f));
    }
}

TEST_CASE("cpu ops: sum of squares over many chunks") {
  const auto ops = make_cpu_ops();
  const std::int64_t n = 1000003;
  const Floats values = Random(2).normal(n);
  double squares = 0;
  for (const float value : values)
    squares += static_cast<double>(value) * static_cast<double>(value);
  CHECK(ops->sum_of_squares(Buffer(*ops, {n}, values)) == Approx(squares).epsilon(1e-7));
}

TEST_CASE("cpu ops: RMSNorm forward") {
  const auto ops = make_cpu_ops();
  Random random(3);
  for (const std::int64_t N : kCounts)
    for (const std::int64_t D : kWidths) {
      INFO("N " << N << " D " << D);
      const Floats x = random.normal(N * D, 3.0), w = random.normal(D);
      const Ints segment_ids = random.integers(N, 0, 2);
      const Buffer y(*ops, {N, D}), rstd(*ops, {N});
      ops->rms_norm_forward(y, rstd, Buffer(*ops, {N, D}, x), Buffer(*ops, {D}, w),
                            Buffer(*ops, {N}, segment_ids), 1e-6f);
      Doubles expected(length(N, D)), expected_rstd(length(N));
      ref::rms_norm_forward(expected.data(), expected_rstd.data(), convert<double>(x).data(),
                            convert<double>(w).data(), segment_ids.data(), 1e-6, N, D);
      CHECK(relative_error(y.values(), expected) < kTolerance);
      CHECK(relative_error(rstd.values(), expected_rstd) < kTolerance);
    }
}

TEST_CASE("cpu ops: padded rows of RMSNorm are zero even where x is not finite") {
  const auto ops = make_cpu_ops();
  const Buffer y(*ops, {2, 3}), rstd(*ops, {2});
  ops->rms_norm_forward(y, rstd, Buffer(*ops, {2, 3}, Floats{NAN, INFINITY, 0, 1, 1, 1}),
                        Buffer(*ops, {3}, 1.0f), Buffer(*ops, {2}, Ints{0, 5}), 0.0f);
  CHECK(y.values() == Floats{0, 0, 0, 1, 1, 1});
}

TEST_CASE("cpu ops: linear forward, plain and accumulated") {
  const auto ops = make_cpu_ops();
  Random random(4);
  for (const std::int64_t N : {0, 1, 17, 65})
    for (const std::int64_t in : {1, 33})
      for (const std::int64_t out : {1, 3, 48}) {
        INFO("N " << N << " in " << in << " out " << out);
        const Floats x = random.normal(N * in), w = random.normal(out * in),
                     old = random.normal(N * out);
        Doubles expected(length(N, out));
        ref::linear_forward(expected.data(), convert<double>(x).data(), convert<double>(w).data(),
                            N, in, out);
        const Buffer y(*ops, {N, out}), accumulated(*ops, {N, out}, old);
        const Buffer x_buffer(*ops, {N, in}, x), w_buffer(*ops, {out, in}, w);
        ops->linear_forward(y, x_buffer, w_buffer);
        ops->linear_forward_accumulate(accumulated, x_buffer, w_buffer);
        CHECK(relative_error(y.values(), expected) < kTolerance);
        CHECK(relative_error(accumulated.values(), sum(expected, old)) < kTolerance);
      }
}

TEST_CASE("cpu ops: grouped products with empty groups leave later rows alone") {
  const auto ops = make_cpu_ops();
  Random random(5);
  const std::vector<std::vector<std::int64_t>> cases{{0, 0, 0, 0},   {0, 40, 40, 40}, {0, 0, 0, 40},
                                                     {0, 1, 18, 35}, {0, 0, 17, 17},  {0, 3, 3, 3}};
  for (const auto& offsets : cases) {
    INFO("offsets " << offsets[1] << " " << offsets[2] << " " << offsets[3]);
    const std::int64_t El = 3, rows = 40, in = 19, out = 34;
    const Floats x = random.normal(rows * in), w = random.normal(El * in * out);
    Doubles expected(length(rows, out), 7.0);
    ref::grouped_matmul_forward(expected.data(), convert<double>(x).data(),
                                convert<double>(w).data(), offsets.data(), El, in, out);
    std::vector<std::int64_t> host_offsets = offsets;
    const Buffer y(*ops, {rows, out}, 7.0f);
    ops->grouped_matmul_forward(y, Buffer(*ops, {rows, in}, x), Buffer(*ops, {El, in, out}, w),
                                host_view(host_offsets.data(), {El + 1}));
    CHECK(relative_error(y.values(), expected) < kTolerance);
  }
}

TEST_CASE("cpu ops: rope forward and its inverse, with rows of changing length") {
  const auto ops = make_cpu_ops();
  Random random(6);
  struct Case {
    std::int64_t B, T, H, Dh;
  };
  for (const Case& c : {Case{1, 1, 1, 2}, Case{2, 17, 3, 34}, Case{2, 5, 3, 34}, Case{1, 300, 2, 8},
                        Case{0, 4, 2, 8}}) {
    INFO("T " << c.T << " Dh " << c.Dh);
    const Shape shape{c.B, c.T, c.H, c.Dh};
    const Floats x = random.normal(shape);
    Doubles expected = convert<double>(x);
    ref::rope(expected.data(), 10000.0, false, c.B, c.T, c.H, c.Dh);
    const Buffer y(*ops, shape, x);
    ops->rope_forward(y, 10000.0f);
    CHECK(relative_error(y.values(), expected) < kTolerance);
    ops->rope_backward(y, 10000.0f);
    CHECK(relative_error(y.values(), convert<double>(x)) < kTolerance);
  }
}

TEST_CASE("cpu ops: rope follows a change of its base") {
  const auto ops = make_cpu_ops();
  const Floats x = Random(7).normal(2 * 4 * 6);
  for (const double base : {10000.0, 100.0, 10000.0}) {
    Doubles expected = convert<double>(x);
    ref::rope(expected.data(), base, false, 1, 8, 1, 6);
    const Buffer y(*ops, {1, 8, 1, 6}, x);
    ops->rope_forward(y, static_cast<float>(base));
    CHECK(relative_error(y.values(), expected) < kTolerance);
  }
}

TEST_CASE("cpu ops: attention forward with segments and padding") {
  const auto ops = make_cpu_ops();
  Random random(8);
  struct Case {
    std::int64_t B, T, H, Dh;
    float scale;
    std::int32_t max_segment;
  };
  for (const Case& c :
       {Case{1, 1, 1, 2, 1.0f, 1}, Case{2, 33, 3, 17, 0.25f, 3}, Case{1, 200, 2, 64, 0.125f, 2},
        Case{2, 65, 1, 8, 1.0f, 0}, Case{0, 9, 1, 8, 1.0f, 1}}) {
    INFO("B " << c.B << " T " << c.T << " Dh " << c.Dh << " segments " << c.max_segment);
    const Shape shape{c.B, c.T, c.H, c.Dh};
    const Floats q = random.normal(shape), k = random.normal(shape), v = random.normal(shape);
    const Ints segment_ids = random.integers(c.B * c.T, 0, c.max_segment);
    Doubles o(length(c.B * c.T, c.H, c.Dh)), log_z(length(c.B, c.H, c.T));
    ref::attention_forward(o.data(), log_z.data(), convert<double>(q).data(),
                           convert<double>(k).data(), convert<double>(v).data(), segment_ids.data(),
                           static_cast<double>(c.scale), c.B, c.T, c.H, c.Dh);
    const Buffer out(*ops, shape), z(*ops, {c.B, c.H, c.T});
    ops->attention_forward(out, z, Buffer(*ops, shape, q), Buffer(*ops, shape, k),
                           Buffer(*ops, shape, v), Buffer(*ops, {c.B, c.T}, segment_ids), c.scale);
    CHECK(relative_error(out.values(), o) < 1e-5);
  }
}

TEST_CASE("cpu ops: FFN activations compute the first rows only") {
  const auto ops = make_cpu_ops();
  Random random(9);
  for (const FfnKind kind : {FfnKind::swiglu, FfnKind::gated_swiglu})
    for (const std::int64_t N : kCounts)
      for (const std::int64_t F : kWidths) {
        INFO("N " << N << " F " << F);
        const std::int64_t width = kind == FfnKind::gated_swiglu ? 2 * F : F, rows = N - N / 3;
        const Floats gate = random.normal(N * width, 3.0), up = random.normal(N * F);
        Doubles expected(length(N, F), 7.0);
        ref::ffn_activation_forward(expected.data(), convert<double>(gate).data(),
                                    convert<double>(up).data(), kind, rows, F);
        const Buffer h(*ops, {N, F}, 7.0f);
        ops->ffn_activation_forward(h, Buffer(*ops, {N, width}, gate), Buffer(*ops, {N, F}, up),
                                    kind, rows);
        CHECK(relative_error(h.values(), expected) < kTolerance);
      }
}

TEST_CASE("cpu ops: swish of extreme values is finite and exact in its limits") {
  const auto ops = make_cpu_ops();
  const Floats gate{-1e30f, -200.0f, -88.5f, -0.0f, 0.0f, 88.5f, 200.0f, 1e30f};
  const Buffer h(*ops, {1, 8});
  ops->ffn_activation_forward(h, Buffer(*ops, {1, 8}, gate), Buffer(*ops, {1, 8}, 1.0f),
                              FfnKind::swiglu, 1);
  const Floats out = h.values();
  for (std::size_t i = 0; i < 3; ++i) CHECK(std::abs(out[i]) < 1e-7f);
  for (std::size_t i = 3; i < 8; ++i) CHECK(out[i] == gate[i]);
  ops->ffn_activation_forward(h, Buffer(*ops, {1, 8}), Buffer(*ops, {1, 8}, 1.0f), FfnKind::swiglu,
                              1);
  for (const float value : h.values()) CHECK(std::isnan(value));
}

// The router of the CPU backend against the reference for given logits.
void check_router(const Floats& logits, const Ints& routed, std::int64_t E,
                  const RouterOptions& options) {
  const auto ops = make_cpu_ops();
  const auto N = static_cast<std::int64_t>(routed.size());
  const std::int64_t groups = N / options.group_tokens;
  const RouterBuffers out(*ops, N, E, options.group_tokens);
  ops->router_forward(out.output(), Buffer(*ops, {N, E}, logits), Buffer(*ops, {N}, routed),
                      options);

  Ints choice(length(N, 2)), slot(length(N, 2));
  Doubles picks(length(groups, E)), prob(length(N, E)), log_z(length(N)), gate(length(N, 2));
  Doubles group_prob(length(groups, E)), group_routed(length(groups)), group_z(length(groups));
  const Doubles in = convert<double>(logits);
  ref::router_choice(choice.data(), in.data(), N, E);
  ref::router_slots(slot.data(), picks.data(), choice.data(), routed.data(), N, E,
                    options.group_tokens, options.capacity);
  ref::router_probabilities(prob.data(), log_z.data(), gate.data(), in.data(), choice.data(),
                            options.normalize_gates, N, E);
  ref::router_group_sums(group_prob.data(), group_routed.data(), group_z.data(), prob.data(),
                         log_z.data(), routed.data(), N, E, options.group_tokens);
  CHECK(out.choice.values<std::int32_t>() == choice);
  CHECK(out.slot.values<std::int32_t>() == slot);
  CHECK(relative_error(out.group_picks.values(), picks) == 0.0);
  CHECK(relative_error(out.group_routed.values(), group_routed) == 0.0);
  CHECK(relative_error(out.prob.values(), prob) < kTolerance);
  CHECK(relative_error(out.log_z.values(), log_z) < kTolerance);
  CHECK(relative_error(out.gate.values(), gate) < kTolerance);
  CHECK(relative_error(out.group_prob.values(), group_prob) < kTolerance);
  CHECK(relative_error(out.group_z.values(), group_z) < kTolerance);
}

TEST_CASE("cpu ops: router forward, both gate rules, with padding and drops") {
  Random random(10);
  for (const bool normalize : {false, true})
    for (const std::int64_t E : {2, 3, 16, 17, 40}) {
      for (const std::int64_t capacity : {1, 4, 1000}) {
        INFO("normalize " << normalize << " E " << E << " capacity " << capacity);
        const std::int64_t N = 4 * 33;
        const Floats logits = random.normal(N * E, 2.0);
        const RouterOptions options{33, capacity, normalize};
        check_router(logits, random.integers(N, 0, 1), E, options);
        check_router(logits, Ints(length(N), 1), E,
                     options);  // route_padding: everything is routed
        check_router(logits, Ints(length(N), 0), E, options);
      }
    }
  check_router({}, {}, 5, {7, 2, false});
}

TEST_CASE("cpu ops: router forward, all tokens to one expert and all logits equal") {
  const std::int64_t N = 64, E = 5;
  Floats skewed = Random(11).normal(N * E, 0.1);
  for (std::int64_t n = 0; n < N; ++n) skewed[length(n, E) + 3] += 20.0f;
  check_router(skewed, Ints(length(N), 1), E, {32, 8, false});
  check_router(Floats(length(N, E), 1.25f), Ints(length(N), 1), E, {32, 8, true});
}

TEST_CASE("cpu ops: router choices stay valid when the logits are not numbers") {
  const auto ops = make_cpu_ops();
  const RouterBuffers out(*ops, 3, 4, 3);
  ops->router_forward(out.output(), Buffer(*ops, {3, 4}), Buffer(*ops, {3}, Ints{1, 1, 1}),
                      {3, 2, false});
  for (const std::int32_t e : out.choice.values<std::int32_t>()) CHECK((e >= 0 && e < 4));
  CHECK(std::isnan(out.group_z.values()[0]));
}

TEST_CASE("cpu ops: gather and combine with dropped assignments and idle rows") {
  const auto ops = make_cpu_ops();
  Random random(12);
  for (const std::int64_t N : kCounts)
    for (const std::int64_t D : kWidths) {
      INFO("N " << N << " D " << D);
      // Assignment i of token i / 2 is dropped when i % 3 == 1; rows are handed out backwards.
      std::int64_t S = 0;
      Ints assignment_row(length(N, 2), -1);
      for (std::size_t i = assignment_row.size(); i-- > 0;)
        if (i % 3 != 1) assignment_row[i] = static_cast<std::int32_t>(S++);
      const std::int64_t S_max = S + 2;
      Ints row_token(length(S_max), -1);
      for (std::size_t i = 0; i < assignment_row.size(); ++i)
        if (assignment_row[i] >= 0)
          row_token[length(assignment_row[i])] = static_cast<std::int32_t>(i / 2);
      const Floats x = random.normal(N * D), in_rows = random.normal(S_max * D),
                   gate = random.normal(N * 2);
      const Floats old = random.normal(N * D);

      const Buffer rows(*ops, {S_max, D}, 7.0f);
      ops->gather_rows(rows, Buffer(*ops, {N, D}, x), Buffer(*ops, {S_max}, row_token), S);
      Floats expected(length(S_max, D), 7.0f);
      ref::gather_rows(expected.data(), x.data(), row_token.data(), S, D);
      CHECK(rows.values() == expected);

      const Buffer y(*ops, {N, D}, old);
      ops->combine_rows_forward_accumulate(y, Buffer(*ops, {S_max, D}, in_rows),
                                           Buffer(*ops, {N, 2}, gate),
                                           Buffer(*ops, {N, 2}, assignment_row));
      Doubles combined = convert<double>(old);
      ref::combine_rows_forward_accumulate(combined.data(), convert<double>(in_rows).data(),
                                           convert<double>(gate).data(), assignment_row.data(), N,
                                           D);
      CHECK(relative_error(y.values(), combined) < kTolerance);
    }
}

void check_cross_entropy(std::int64_t n, std::int64_t V, double spread, Random& random) {
  INFO("n " << n << " V " << V);
  const auto ops = make_cpu_ops();
  Floats logits = random.normal(n * V, spread);
  const Ints targets = random.integers(n, 0, static_cast<std::int32_t>(V - 1));
  Floats weights = random.normal(n);
  for (std::size_t i = 0; i < weights.size(); ++i)
    weights[i] = i % 4 == 3 ? 0.0f : std::abs(weights[i]);
  for (std::int64_t i = 0; i < n; i += 2)
    logits[length(i, V) + length(targets[length(i)])] = 12.0f;  // some are right
  const auto expected = ref::softmax_cross_entropy(convert<double>(logits).data(), targets.data(),
                                                   convert<double>(weights).data(), n, V);
  const Buffer logits_buffer(*ops, {n, V}, logits), token_loss(*ops, {n});
  const LossSums found =
      ops->softmax_cross_entropy(logits_buffer, Buffer(*ops, {n}, targets),
                                 Buffer(*ops, {n}, weights), token_loss, 1e-4f, 0.0f);
  CHECK(found.cross_entropy == Approx(expected.cross_entropy).epsilon(1e-6).margin(1e-6));
  CHECK(found.log_z_square == Approx(expected.log_z_square).epsilon(1e-6).margin(1e-6));
  CHECK(found.correct == Approx(expected.correct));
  CHECK(logits_buffer.values() == logits);  // evaluation leaves them alone
  double token_sum = 0;
  for (const float loss : token_loss.values()) token_sum += static_cast<double>(loss);
  CHECK(token_sum == Approx(expected.cross_entropy).epsilon(1e-5).margin(1e-6));
}

TEST_CASE("cpu ops: cross-entropy sums") {
  Random random(13);
  for (const std::int64_t n : {0, 1, 3, 33})
    for (const std::int64_t V : {1, 2, 17, 1000, 1025, 5003})
      check_cross_entropy(n, V, 3.0, random);
}

TEST_CASE("cpu ops: cross-entropy over the vocabulary of OpenMoE") {
  Random random(14);
  check_cross_entropy(3, 256384, 2.0, random);
}

TEST_CASE(
    "cpu ops: cross-entropy counts a tie for the lower id, and reports what is not a number") {
  const auto ops = make_cpu_ops();
  const Buffer weights(*ops, {1}, 1.0f);
  for (const std::int32_t target : {1, 2}) {
    const Buffer logits(*ops, {1, 4}, Floats{0, 5, 5, 1});
    const LossSums sums = ops->softmax_cross_entropy(logits, Buffer(*ops, {1}, Ints{target}),
                                                     weights, Tensor{}, 0.0f, 0.0f);
    CHECK(sums.correct == (target == 1 ? 1.0 : 0.0));
  }
  for (const float bad : {NAN, INFINITY}) {
    Floats values(2000, 0.0f);
    values[1500] = bad;
    const Buffer logits(*ops, {1, 2000}, values);
    const LossSums sums = ops->softmax_cross_entropy(logits, Buffer(*ops, {1}, Ints{3}), weights,
                                                     Tensor{}, 0.0f, 0.0f);
    CHECK(!std::isfinite(sums.cross_entropy));
  }
}

}  // namespace
}  // namespace openmoe
