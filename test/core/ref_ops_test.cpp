// The reference ops against values worked out by hand.
#include <cmath>
#include <vector>

#include "core/ref/adafactor.h"
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

using test::Complex;
using test::Doubles;
using test::Ints;

void check_close(const Doubles& found, const Doubles& expected) {
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    INFO("element " << i);
    CHECK(found[i] == Approx(expected[i]).margin(1e-12));
  }
}

double swish(double x) {
  return x / (1.0 + std::exp(-x));
}

TEST_CASE("ref: embedding picks rows of the table") {
  const Doubles table{1, 2, 3, 4, 5, 6};
  const Ints ids{2, 0, 2};
  Doubles x(6);
  ref::embedding_forward(x.data(), table.data(), ids.data(), 3, 2);
  check_close(x, {5, 6, 1, 2, 5, 6});
}

TEST_CASE("ref: RMSNorm divides by the root of the mean square, and clears padded rows") {
  const Doubles x{3, 4, 1, 1}, w{2, 10};
  const Ints segment_ids{1, 0};
  Doubles y(4), rstd(2);
  ref::rms_norm_forward(y.data(), rstd.data(), x.data(), w.data(), segment_ids.data(), 0.0, 2, 2);
  const double rms = std::sqrt(12.5);
  check_close(y, {6 / rms, 40 / rms, 0, 0});
  check_close(rstd, {1 / rms, 0});
  ref::rms_norm_forward(y.data(), rstd.data(), x.data(), w.data(), segment_ids.data(), 3.5, 1, 2);
  check_close(rstd, {0.25, 0});
}

TEST_CASE("ref: linear weights are (out, in), expert weights (El, in, out)") {
  const Doubles x{1, 2, 3, 4, 5, 6};  // (2, 3)
  const Doubles w{1, 0, 2, 0, 1, 1};  // (2, 3)
  Doubles y(4);
  ref::linear_forward(y.data(), x.data(), w.data(), 2, 3, 2);
  check_close(y, {7, 5, 16, 11});

  const Doubles experts{1, 2, 3, 4, 10, 20, 30, 40};  // (2, 2, 2)
  const Doubles rows{1, 1, 1, -1, 2, 0};              // (3, 2)
  const std::vector<std::int64_t> offsets{0, 1, 2};
  Doubles out(6, 7.0);
  ref::grouped_matmul_forward(out.data(), rows.data(), experts.data(), offsets.data(), 2, 2, 2);
  check_close(out, {4, 6, -20, -20, 7, 7});
}

TEST_CASE("ref: rope turns pairs (j, j + Dh/2) by t * base^(-2j/Dh)") {
  const double half_pi = std::acos(0.0);
  Doubles x{1, 2, 3, 4, 1, 2, 3, 4};  // (1, 2, 1, 4)
  ref::rope(x.data(), 4.0 / (half_pi * half_pi), false, 1, 2, 1, 4);
  const double c = std::cos(1.0), s = std::sin(1.0);
  const double angle = half_pi / 2;
  check_close(x, {1, 2, 3, 4, c - 3 * s, 2 * std::cos(angle) - 4 * std::sin(angle), 3 * c + s,
                  4 * std::cos(angle) + 2 * std::sin(angle)});
  ref::rope(x.data(), 4.0 / (half_pi * half_pi), true, 1, 2, 1, 4);
  check_close(x, {1, 2, 3, 4, 1, 2, 3, 4});
}

TEST_CASE("ref: attention sees earlier positions of its own segment only") {
  // T = 5, segments 1 1 2 0 2: position 4 sees 2 and 4.
  const Ints segment_ids{1, 1, 2, 0, 2};
  const Doubles q{0, 1, 1, 1, 1}, k{5, 5 - std::log(3.0), 1, 9, 1 + std::log(3.0)},
      v{10, 20, 30, 40, 50};
  Doubles o(5), log_z(5);
  ref::attention_forward(o.data(), log_z.data(), q.data(), k.data(), v.data(), segment_ids.data(),
                         1.0, 1, 5, 1, 1);
  check_close(o, {10, 0.75 * 10 + 0.25 * 20, 30, 0, 0.25 * 30 + 0.75 * 50});
  check_close(log_z, {0, 5 + std::log(4.0 / 3.0), 1, 0, 1 + std::log(4.0)});
  ref::attention_forward(o.data(), log_z.data(), q.data(), k.data(), v.data(), segment_ids.data(),
                         0.0, 1, 5, 1, 1);
  check_close(o, {10, 15, 30, 0, 40});
}

TEST_CASE("ref: the second half of a gated gate goes through swish") {
  const Doubles gate{1, 2, 3, 4}, up{5, 6};
  Doubles h(2);
  ref::ffn_activation_forward(h.data(), gate.data(), up.data(), FfnKind::gated_swiglu, 1, 2);
  check_close(h, {1 * swish(3) * 5, 2 * swish(4) * 6});
  ref::ffn_activation_forward(h.data(), gate.data(), up.data(), FfnKind::swiglu, 1, 2);
  check_close(h, {swish(1) * 5, swish(2) * 6});
}

TEST_CASE("ref: router choices, queues, drops and group sums") {
  // Four tokens, three experts, one group, capacity 1. Logits are logarithms of probabilities.
  const Doubles prob_in{.5, .3, .2, .5, .2, .3, .25, .25, .5, .6, .3, .1};
  Doubles logits;
  for (const double p : prob_in) logits.push_back(std::log(p));
  Ints choice(8), slot(8);
  ref::router_choice(choice.data(), logits.data(), 4, 3);
  CHECK(choice ==
        Ints{0, 1, 0, 2, 2, 0, 0, 1});  // token 2: experts 0 and 1 tie for second, the lower wins

  // Token 3 is not routed. Queue of expert 0: token 0, token 1 (dropped), then the second choice of
  // token 2 (dropped).
  const Ints routed{1, 1, 1, 0};
  Doubles picks(3);
  ref::router_slots(slot.data(), picks.data(), choice.data(), routed.data(), 4, 3, 4, 1);
  CHECK(slot == Ints{0, 0, -1, -1, 0, -1, -1, -1});
  check_close(picks, {3, 1, 2});

  Doubles prob(12), log_z(4), gate(8);
  ref::router_probabilities(prob.data(), log_z.data(), gate.data(), logits.data(), choice.data(),
                            false, 4, 3);
  check_close(prob, prob_in);
  check_close(log_z, {0, 0, 0, 0});
  check_close(gate, {.5, .3, .5, .3, .5, .25, .6, .3});
  ref::router_probabilities(prob.data(), log_z.data(), gate.data(), logits.data(), choice.data(),
                            true, 4, 3);
  check_close(gate, {.625, .375, .625, .375, 2 / 3., 1 / 3., 2 / 3., 1 / 3.});

  Doubles group_prob(3), group_routed(1), group_z(1);
  const Doubles some_z{1, 2, 3, 4};
  ref::router_group_sums(group_prob.data(), group_routed.data(), group_z.data(), prob.data(),
                         some_z.data(), routed.data(), 4, 3, 4);
  check_close(group_prob, {1.25, 0.75, 1.0});
  check_close(group_routed, {3});
  check_close(group_z, {14});
  CHECK(ref::router_balance(picks.data(), group_prob.data(), group_routed.data(), 1, 3) ==
        Approx(3 * (3 * 1.25 + 1 * 0.75 + 2 * 1.0) / 9));
}

TEST_CASE("ref: queues of different groups are independent, first choices go before second") {
  // Two groups of two tokens, two experts, capacity 1.
  const Ints choice{0, 1, 1, 0, 0, 1, 0, 1}, routed{1, 1, 1, 1};
  Ints slot(8);
  Doubles picks(4);
  ref::router_slots(slot.data(), picks.data(), choice.data(), routed.data(), 4, 2, 2, 1);
  CHECK(slot == Ints{0, -1, 0, -1, 0, 0, -1, -1});
  check_close(picks, {2, 2, 2, 2});
}

TEST_CASE("ref: combine weighs the rows of kept assignments") {
  const Doubles rows{1, 2, 10, 20}, gate{.5, .25, .1, .2};
  const Ints assignment_row{1, 0, -1, 0};
  Doubles y{100, 100, 100, 100};
  ref::combine_rows_forward_accumulate(y.data(), rows.data(), gate.data(), assignment_row.data(), 2,
                                       2);
  check_close(y, {105.25, 110.5, 100.2, 100.4});
}

TEST_CASE("ref: cross-entropy counts weighted tokens") {
  const Doubles logits{0, std::log(3.0), 1, 1, 5, 5};  // (3, 2)
  const Ints targets{1, 1, 0};
  const auto sums =
      ref::softmax_cross_entropy(logits.data(), targets.data(), Doubles{2, 1, 0}.data(), 3, 2);
  CHECK(sums.cross_entropy == Approx(2 * std::log(4.0 / 3.0) + std::log(2.0)));
  CHECK(sums.log_z_square ==
        Approx(2 * std::pow(std::log(4.0), 2) + std::pow(1 + std::log(2.0), 2)));
  CHECK(sums.correct == 2.0);  // the tie of the second row goes to id 0, which is not its target
}

TEST_CASE("ref: Adafactor, first step and clipping") {
  const ref::AdafactorScalars first{0.1, 0.0, 1.0, 0.0, 1e-3};
  // One matrix (1, 2, 2): row = (2.5, 12.5), col = (5, 10), row mean 7.5.
  Doubles w{3, 3, 3, 3}, row{NAN, NAN}, col{NAN, NAN};
  const Doubles g{1, 2, 3, 4};
  ref::adafactor_factored(w.data(), row.data(), col.data(), g.data(), first, 1, 2, 2);
  check_close(row, {2.5, 12.5});
  check_close(col, {5, 10});
  Doubles u{1 / std::sqrt(2.5 / 7.5 * 5), 2 / std::sqrt(2.5 / 7.5 * 10),
            3 / std::sqrt(12.5 / 7.5 * 5), 4 / std::sqrt(12.5 / 7.5 * 10)};
  double square = 0;
  for (const double value : u) square += value * value / 4;
  const double clip = std::max(1.0, std::sqrt(square));
  for (double& value : u) value = 3 - 0.1 * 3 * value / clip;
  check_close(w, u);

  // Unfactored: the first update is the sign of g, whose RMS is 1; tiny parameters move by at least
  // epsilon_scale.
  Doubles v{NAN, NAN}, tiny{0, 0};
  const Doubles signs{-2, 5};
  ref::adafactor_full(tiny.data(), v.data(), signs.data(), first, 2);
  check_close(v, {4, 25});
  check_close(tiny, {1e-4, -1e-4});
  // Second step with decay 3/4 and no gradient: v decays, w stays.
  ref::AdafactorScalars second = first;
  second.decay = 0.75;
  const Doubles none{0, 0};
  ref::adafactor_full(tiny.data(), v.data(), none.data(), second, 2);
  check_close(v, {3, 18.75});
  check_close(tiny, {1e-4, -1e-4});
}

TEST_CASE("ref: a complex step differentiates") {
  const Complex x(0.3, 1e-40);
  CHECK(ref::sigmoid(x).imag() / 1e-40 == Approx(ref::sigmoid(0.3) * (1 - ref::sigmoid(0.3))));
  const Complex pair[2] = {Complex(1.0, 1e-40), Complex(2.0)};
  CHECK(ref::log_sum_exp(pair, 2).imag() / 1e-40 == Approx(1 / (1 + std::exp(1.0))));
}

}  // namespace
}  // namespace openmoe
