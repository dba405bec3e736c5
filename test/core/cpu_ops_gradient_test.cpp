// Backward ops of the CPU backend against complex steps through the reference forward in f64.
// Overwritten gradients start as NaN, accumulated ones as random values that must still be in the
// result.
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
using Complexes = std::vector<Complex>;

constexpr double kTolerance = 3e-6;

std::size_t length(std::int64_t a, std::int64_t b = 1) {
  return static_cast<std::size_t>(a * b);
}

TEST_CASE("cpu ops gradient: embedding, with repeated ids") {
  const auto ops = make_cpu_ops();
  Random random(1);
  for (const std::int64_t N : {0, 1, 9})
    for (const std::int64_t D : {1, 17, 150}) {
      INFO("N " << N << " D " << D);
      const std::int64_t V = 5;
      const Floats table = random.normal(V * D), dx = random.normal(N * D),
                   old = random.normal(V * D);
      const Ints ids = random.integers(N, 1, 3);
      const Doubles expected = complex_step(table, [&](const Complexes& point) {
        Complexes x(length(N, D));
        ref::embedding_forward(x.data(), point.data(), ids.data(), N, D);
        return weighted_sum(x, dx);
      });
      const Buffer dtable(*ops, {V, D}, old);
      ops->embedding_backward(dtable, Buffer(*ops, {N, D}, dx), Buffer(*ops, {N}, ids));
      CHECK(relative_error(dtable.values(), sum(expected, old)) < kTolerance);
    }
}

TEST_CASE("cpu ops gradient: RMSNorm accumulates into dx and dw, padded rows give nothing") {
  const auto ops = make_cpu_ops();
  Random random(2);
  for (const std::int64_t N : {0, 1, 5, 35})
    for (const std::int64_t D : {1, 17, 36}) {
      INFO("N " << N << " D " << D);
      const double eps = D == 1 ? 0.5 : 1e-6;  // of one value, only eps makes the norm depend on it
      const Floats x = random.normal(N * D), w = random.normal(D), dy = random.normal(N * D);
      const Floats old_dx = random.normal(N * D), old_dw = random.normal(D);
      const Ints segment_ids = random.integers(N, 0, 2);
      const auto loss = [&](const Complexes& x_point, const Complexes& w_point) {
        Complexes y(length(N, D)), rstd(length(N));
        ref::rms_norm_forward(y.data(), rstd.data(), x_point.data(), w_point.data(),
                              segment_ids.data(), eps, N, D);
        return weighted_sum(y, dy);
      };
      const Complexes x_value = convert<Complex>(x), w_value = convert<Complex>(w);
      const Doubles expected_dx =
          complex_step(x, [&](const Complexes& point) { return loss(point, w_value); });
      const Doubles expected_dw =
          complex_step(w, [&](const Complexes& point) { return loss(x_value, point); });

      const Buffer x_buffer(*ops, {N, D}, x), w_buffer(*ops, {D}, w),
          segments(*ops, {N}, segment_ids);
      const Buffer y(*ops, {N, D}), rstd(*ops, {N}), dx(*ops, {N, D}, old_dx),
          dw(*ops, {D}, old_dw);
      ops->rms_norm_forward(y, rstd, x_buffer, w_buffer, segments, static_cast<float>(eps));
      ops->rms_norm_backward_accumulate(dx, dw, Buffer(*ops, {N, D}, dy), x_buffer, w_buffer,
                                        segments, rstd);
      CHECK(relative_error(dx.values(), sum(expected_dx, old_dx)) < kTolerance);
      CHECK(relative_error(dw.values(), sum(expected_dw, old_dw)) < kTolerance);
    }
}

TEST_CASE("cpu ops gradient: linear") {
  const auto ops = make_cpu_ops();
  Random random(3);
  for (const std::int64_t N : {0, 1, 7}) {
    const std::int64_t in = 9, out = 18;
    INFO("N " << N);
    const Floats x = random.normal(N * in), w = random.normal(out * in),
                 dy = random.normal(N * out);
    const Floats old_dx = random.normal(N * in), old_dw = random.normal(out * in);
    const auto loss = [&](const Complexes& x_point, const Complexes& w_point) {
      Complexes y(length(N, out));
      ref::linear_forward(y.data(), x_point.data(), w_point.data(), N, in, out);
      return weighted_sum(y, dy);
    };
    const Complexes x_value = convert<Complex>(x), w_value = convert<Complex>(w);
    const Doubles expected_dx =
        complex_step(x, [&](const Complexes& point) { return loss(point, w_value); });
    const Doubles expected_dw =
        complex_step(w, [&](const Complexes& point) { return loss(x_value, point); });

    const Buffer dy_buffer(*ops, {N, out}, dy), w_buffer(*ops, {out, in}, w);
    const Buffer dx(*ops, {N, in}), accumulated(*ops, {N, in}, old_dx), dw(*ops, {out, in}, old_dw);
    ops->linear_backward_input(dx, dy_buffer, w_buffer);
    ops->linear_backward_input_accumulate(accumulated, dy_buffer, w_buffer);
    ops->linear_backward_weight(dw, dy_buffer, Buffer(*ops, {N, in}, x));
    CHECK(relative_error(dx.values(), expected_dx) < kTolerance);
    CHECK(relative_error(accumulated.values(), sum(expected_dx, old_dx)) < kTolerance);
    CHECK(relative_error(dw.values(), sum(expected_dw, old_dw)) < kTolerance);
  }
}

TEST_CASE("cpu ops gradient: grouped products, with empty groups") {
  const auto ops = make_cpu_ops();
  Random random(4);
  const std::int64_t El = 3, rows = 8, in = 5, out = 6;
  for (std::vector<std::int64_t> offsets :
       std::vector<std::vector<std::int64_t>>{{0, 3, 3, 7}, {0, 0, 8, 8}, {0, 0, 0, 0}}) {
    INFO("offsets " << offsets[1] << " " << offsets[2] << " " << offsets[3]);
    const Floats x = random.normal(rows * in), w = random.normal(El * in * out),
                 dy = random.normal(rows * out);
    const Floats old_dx = random.normal(rows * in), old_dw = random.normal(El * in * out);
    const auto loss = [&](const Complexes& x_point, const Complexes& w_point) {
      Complexes y(length(rows, out));
      ref::grouped_matmul_forward(y.data(), x_point.data(), w_point.data(), offsets.data(), El, in,
                                  out);
      return weighted_sum(y, dy);
    };
    const Complexes x_value = convert<Complex>(x), w_value = convert<Complex>(w);
    const Doubles expected_dx =
        complex_step(x, [&](const Complexes& point) { return loss(point, w_value); });
    const Doubles expected_dw =
        complex_step(w, [&](const Complexes& point) { return loss(x_value, point); });

    const Tensor host_offsets = host_view(offsets.data(), {El + 1});
    const Buffer dy_buffer(*ops, {rows, out}, dy), w_buffer(*ops, {El, in, out}, w);
    const Buffer dx(*ops, {rows, in}, 0.0f), accumulated(*ops, {rows, in}, old_dx),
        dw(*ops, {El, in, out}, old_dw);
    ops->grouped_matmul_backward_input(dx, dy_buffer, w_buffer, host_offsets);
    ops->grouped_matmul_backward_input_accumulate(accumulated, dy_buffer, w_buffer, host_offsets);
    ops->grouped_matmul_backward_weight(dw, dy_buffer, Buffer(*ops, {rows, in}, x), host_offsets);
    CHECK(relative_error(dx.values(), expected_dx) < kTolerance);
    CHECK(relative_error(accumulated.values(), sum(expected_dx, old_dx)) < kTolerance);
    CHECK(relative_error(dw.values(), sum(expected_dw, old_dw)) < kTolerance);
  }
}

TEST_CASE("cpu ops gradient: rope") {
  const auto ops = make_cpu_ops();
  Random random(5);
  const Shape shape{2, 3, 2, 6};
  const Floats x = random.normal(shape), dy = random.normal(shape);
  const Doubles expected = complex_step(x, [&](const Complexes& point) {
    Complexes y = point;
    ref::rope(y.data(), 100.0, false, 2, 3, 2, 6);
    return weighted_sum(y, dy);
  });
  const Buffer dx(*ops, shape, dy);
  ops->rope_backward(dx, 100.0f);
  CHECK(relative_error(dx.values(), expected) < kTolerance);
}

TEST_CASE("cpu ops gradient: attention with segments and padding") {
  const auto ops = make_cpu_ops();
  Random random(6);
  struct Case {
    std::int64_t B, T, H, Dh;
    std::int32_t max_segment;
  };
  for (const Case& c :
       {Case{1, 1, 1, 2, 1}, Case{2, 9, 2, 5, 2}, Case{1, 37, 1, 4, 2}, Case{1, 6, 1, 4, 0}}) {
    INFO("T " << c.T << " Dh " << c.Dh);
    const Shape shape{c.B, c.T, c.H, c.Dh};
    const Floats q = random.normal(shape), k = random.normal(shape), v = random.normal(shape),
                 dout = random.normal(shape);
    const Ints segment_ids = random.integers(c.B * c.T, 0, c.max_segment);
    const float scale = 0.5f;
    const auto loss = [&](const Complexes& a, const Complexes& b, const Complexes& d) {
      Complexes o(a.size()), log_z(length(c.B * c.H, c.T));
      ref::attention_forward(o.data(), log_z.data(), a.data(), b.data(), d.data(),
                             segment_ids.data(), 0.5, c.B, c.T, c.H, c.Dh);
      return weighted_sum(o, dout);
    };
    const Complexes qc = convert<Complex>(q), kc = convert<Complex>(k), vc = convert<Complex>(v);
    const Doubles expected_dq =
        complex_step(q, [&](const Complexes& point) { return loss(point, kc, vc); });
    const Doubles expected_dk =
        complex_step(k, [&](const Complexes& point) { return loss(qc, point, vc); });
    const Doubles expected_dv =
        complex_step(v, [&](const Complexes& point) { return loss(qc, kc, point); });

    const Buffer qb(*ops, shape, q), kb(*ops, shape, k), vb(*ops, shape, v),
        segments(*ops, {c.B, c.T}, segment_ids);
    const Buffer o(*ops, shape), log_z(*ops, {c.B, c.H, c.T}), dq(*ops, shape), dk(*ops, shape),
        dv(*ops, shape);
    ops->attention_forward(o, log_z, qb, kb, vb, segments, scale);
    ops->attention_backward(dq, dk, dv, Buffer(*ops, shape, dout), qb, kb, vb, o, segments, log_z,
                            scale);
    CHECK(relative_error(dq.values(), expected_dq) < 1e-5);
    CHECK(relative_error(dk.values(), expected_dk) < 1e-5);
    CHECK(relative_error(dv.values(), expected_dv) < 1e-5);
  }
}

TEST_CASE("cpu ops gradient: FFN activations, also in place") {
  const auto ops = make_cpu_ops();
  Random random(7);
  for (const FfnKind kind : {FfnKind::swiglu, FfnKind::gated_swiglu})
    for (const std::int64_t F : {1, 19, 32}) {
      const std::int64_t N = 5, rows = 4, width = kind == FfnKind::gated_swiglu ? 2 * F : F;
      INFO("F " << F << " width " << width);
      const Floats gate = random.normal(N * width, 2.0), up = random.normal(N * F),
                   dh = random.normal(N * F);
      const auto loss = [&](const Complexes& gate_point, const Complexes& up_point) {
        Complexes h(length(N, F));
        ref::ffn_activation_forward(h.data(), gate_point.data(), up_point.data(), kind, rows, F);
        return weighted_sum(h, dh);
      };
      const Complexes gate_value = convert<Complex>(gate), up_value = convert<Complex>(up);
      const Doubles expected_dgate =
          complex_step(gate, [&](const Complexes& point) { return loss(point, up_value); });
      const Doubles expected_dup =
          complex_step(up, [&](const Complexes& point) { return loss(gate_value, point); });

      const Buffer gate_buffer(*ops, {N, width}, gate), up_buffer(*ops, {N, F}, up),
          dh_buffer(*ops, {N, F}, dh);
      const Buffer dgate(*ops, {N, width}, 0.0f), dup(*ops, {N, F}, 0.0f);
      ops->ffn_activation_backward(dgate, dup, dh_buffer, gate_buffer, up_buffer, kind, rows);
      CHECK(relative_error(dgate.values(), expected_dgate) < kTolerance);
      CHECK(relative_error(dup.values(), expected_dup) < kTolerance);
      ops->ffn_activation_backward(gate_buffer, up_buffer, dh_buffer, gate_buffer, up_buffer, kind,
                                   rows);
      Floats in_place = gate_buffer.values();
      in_place.resize(length(rows, width));
      Floats apart = dgate.values();
      apart.resize(length(rows, width));
      CHECK(in_place == apart);
    }
}

TEST_CASE("cpu ops gradient: router through gates, balance and z losses") {
  const auto ops = make_cpu_ops();
  Random random(8);
  for (const bool normalize : {false, true})
    for (const std::int64_t E : {2, 5, 17}) {
      INFO("normalize " << normalize << " E " << E);
      const std::int64_t N = 12, G = 4, groups = N / G, capacity = 2;
      const double balance_scale = 0.7, z_scale = 0.3;
      const Floats logits = random.normal(N * E);
      Ints routed = random.integers(N, 0, 1);
      for (std::size_t n = 4; n < 8; ++n) routed[n] = 0;  // a group of padding only
      routed[0] = 1;
      Ints choice(length(N, 2)), slot(length(N, 2));
      Complexes picks(length(groups, E));
      ref::router_choice(choice.data(), logits.data(), N, E);
      ref::router_slots(slot.data(), picks.data(), choice.data(), routed.data(), N, E, G, capacity);
      // What combine_rows_backward hands over: no gradient where there is no row.
      Floats dgate = random.normal(N * 2);
      for (std::size_t i = 0; i < dgate.size(); ++i)
        if (slot[i] < 0) dgate[i] = 0.0f;
      const Doubles expected = complex_step(logits, [&](const Complexes& point) {
        Complexes prob(length(N, E)), log_z(length(N)), gate(length(N, 2));
        Complexes group_prob(length(groups, E)), group_routed(length(groups)),
            group_z(length(groups));
        ref::router_probabilities(prob.data(), log_z.data(), gate.data(), point.data(),
                                  choice.data(), normalize, N, E);
        ref::router_group_sums(group_prob.data(), group_routed.data(), group_z.data(), prob.data(),
                               log_z.data(), routed.data(), N, E, G);
        Complex total = weighted_sum(gate, dgate);
        total += balance_scale * ref::router_balance(picks.data(), group_prob.data(),
                                                     group_routed.data(), groups, E);
        for (const Complex& z : group_z) total += z_scale * z;
        return total;
      });

      const RouterBuffers saved(*ops, N, E, G);
      const RouterOptions options{G, capacity, normalize};
      const Buffer routed_buffer(*ops, {N}, routed), dlogits(*ops, {N, E});
      ops->router_forward(saved.output(), Buffer(*ops, {N, E}, logits), routed_buffer, options);
      ops->router_backward(dlogits, Buffer(*ops, {N, 2}, dgate), routed_buffer, saved.output(),
                           {static_cast<float>(balance_scale), static_cast<float>(z_scale)},
                           options);
      CHECK(relative_error(dlogits.values(), expected) < kTolerance);
    }
}

TEST_CASE(
    "cpu ops gradient: a token that is not routed gets no router gradient, even from its gates") {
  const auto ops = make_cpu_ops();
  const RouterBuffers saved(*ops, 2, 3, 2);
  const Buffer routed(*ops, {2}, Ints{0, 0}), dlogits(*ops, {2, 3});
  ops->router_forward(saved.output(), Buffer(*ops, {2, 3}, Random(9).normal(6)), routed,
                      {2, 4, false});
  ops->router_backward(dlogits, Buffer(*ops, {2, 2}, 1.0f), routed, saved.output(), {1.0f, 1.0f},
                       {2, 4, false});
  CHECK(dlogits.values() == Floats(6, 0.0f));
}

TEST_CASE("cpu ops gradient: gather and combine") {
  const auto ops = make_cpu_ops();
  Random random(10);
  for (const std::int64_t D : {1, 17, 40}) {
    INFO("D " << D);
    // Token 0 keeps both rows, 1 the second, 2 none, 3 the first; row 4 of 5 belongs to nobody.
    const std::int64_t N = 4, S = 4, S_max = 5;
    const Ints assignment_row{2, 0, -1, 3, -1, -1, 1, -1}, row_token{0, 3, 0, 1, -1};
    const Floats x = random.normal(N * D), rows = random.normal(S_max * D),
                 gate = random.normal(N * 2);
    const Floats dy = random.normal(N * D), drows_in = random.normal(S_max * D),
                 old_dx = random.normal(N * D);

    const Doubles expected_dx = complex_step(x, [&](const Complexes& point) {
      Complexes out(length(S, D));
      ref::gather_rows(out.data(), point.data(), row_token.data(), S, D);
      return weighted_sum(out, Floats(drows_in.begin(), drows_in.begin() + S * D));
    });
    const Buffer assignments(*ops, {N, 2}, assignment_row), dx(*ops, {N, D}, old_dx);
    ops->gather_rows_backward_accumulate(dx, Buffer(*ops, {S_max, D}, drows_in), assignments);
    CHECK(relative_error(dx.values(), sum(expected_dx, old_dx)) < kTolerance);

    const auto loss = [&](const Complexes& rows_point, const Complexes& gate_point) {
      Complexes y(length(N, D));
      ref::combine_rows_forward_accumulate(y.data(), rows_point.data(), gate_point.data(),
                                           assignment_row.data(), N, D);
      return weighted_sum(y, dy);
    };
    const Complexes rows_value = convert<Complex>(rows), gate_value = convert<Complex>(gate);
    Doubles expected_drows =
        complex_step(rows, [&](const Complexes& point) { return loss(point, gate_value); });
    const Doubles expected_dgate =
        complex_step(gate, [&](const Complexes& point) { return loss(rows_value, point); });
    for (std::int64_t d = 0; d < D; ++d) expected_drows[length(S, D) + length(d)] = 7.0;
    const Buffer drows(*ops, {S_max, D}, 7.0f), dgate(*ops, {N, 2});
    ops->combine_rows_backward(drows, dgate, Buffer(*ops, {N, D}, dy),
                               Buffer(*ops, {S_max, D}, rows), Buffer(*ops, {N, 2}, gate),
                               assignments);
    CHECK(relative_error(drows.values(), expected_drows) < kTolerance);
    CHECK(relative_error(dgate.values(), expected_dgate) < kTolerance);
  }
}

TEST_CASE("cpu ops gradient: cross-entropy with z-loss") {
  const auto ops = make_cpu_ops();
  Random random(11);
  for (const std::int64_t n : {0, 1, 6})
    for (const std::int64_t V : {1, 2, 19, 70}) {
      INFO("n " << n << " V " << V);
      const double z_weight = 0.05, scale = 0.25;
      Floats logits = random.normal(n * V, 3.0), weights = random.normal(n);
      if (n > 2) weights[2] = 0.0f;
      const Ints targets = random.integers(n, 0, static_cast<std::int32_t>(V - 1));
      const Doubles expected = complex_step(logits, [&](const Complexes& point) {
        const auto sums = ref::softmax_cross_entropy(point.data(), targets.data(),
                                                     convert<double>(weights).data(), n, V);
        return scale * (sums.cross_entropy + z_weight * sums.log_z_square);
      });
      if (n > 2) logits[length(2, V)] = NAN;  // a row of weight 0 must not leak what it holds
      const Buffer dlogits(*ops, {n, V}, logits);
      const LossSums sums = ops->softmax_cross_entropy(
          dlogits, Buffer(*ops, {n}, targets), Buffer(*ops, {n}, weights), Tensor{},
          static_cast<float>(z_weight), static_cast<float>(scale));
      CHECK(relative_error(dlogits.values(), expected) < kTolerance);
      CHECK(std::isfinite(sums.cross_entropy));
    }
}

}  // namespace
}  // namespace openmoe
