// Adafactor of the CPU backend against the reference over several steps, starting from state that
// holds garbage.
#include <cmath>

#include "core/cpu/cpu_ops.h"
#include "core/ref/adafactor.h"
#include "test/core/ops_test_support.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

using namespace test;

AdafactorScalars scalars_of(int step, float clip_threshold) {
  AdafactorScalars scalars;
  scalars.learning_rate = 0.02f;
  scalars.decay = static_cast<float>(1.0 - std::pow(step + 1.0, -0.8));
  scalars.clip_threshold = clip_threshold;
  return scalars;
}

ref::AdafactorScalars widen(const AdafactorScalars& s) {
  return {static_cast<double>(s.learning_rate), static_cast<double>(s.decay),
          static_cast<double>(s.clip_threshold), static_cast<double>(s.epsilon_square),
          static_cast<double>(s.epsilon_scale)};
}

TEST_CASE("cpu ops: factored Adafactor, per matrix of a stack") {
  const auto ops = make_cpu_ops();
  Random random(1);
  for (const Shape& shape :
       {Shape{1, 1, 1}, Shape{3, 5, 17}, Shape{2, 150, 33}, Shape{1, 1100, 3}, Shape{0, 4, 4}}) {
    INFO(shape.to_string());
    const std::int64_t stack = shape[0], R = shape[1], C = shape[2];
    Floats w = random.normal(shape);
    for (std::size_t i = 0; stack > 1 && i < static_cast<std::size_t>(R * C); ++i)
      w[i] *= 1e-5f;  // below epsilon_scale
    Doubles expected_w = convert<double>(w);
    Doubles expected_row(static_cast<std::size_t>(stack * R), NAN),
        expected_col(static_cast<std::size_t>(stack * C), NAN);
    const Buffer value(*ops, shape, w), row(*ops, {stack, R}), col(*ops, {stack, C});
    std::vector<BFloat16> rounded(w.size());
    for (int step = 0; step < 4; ++step) {
      Floats g = random.normal(shape, step == 2 ? 10.0 : 0.1);  // the third step clips
      for (std::size_t i = 0; i < g.size(); ++i)
        if (step == 1 || i % 7 == 0) g[i] = 0.0f;
      const AdafactorScalars scalars = scalars_of(step, 1.0f);
      ref::adafactor_factored(expected_w.data(), expected_row.data(), expected_col.data(),
                              convert<double>(g).data(), widen(scalars), stack, R, C);
      ops->adafactor_factored(value, row, col, Buffer(*ops, shape, g), scalars, nullptr,
                              step == 3 ? host_view(rounded.data(), shape) : Tensor{});
    }
    const Floats updated = value.values();
    for (std::size_t i = 0; i < updated.size(); ++i)
      REQUIRE(static_cast<float>(rounded[i]) == static_cast<float>(BFloat16(updated[i])));
    CHECK(relative_error(value.values(), expected_w) < 2e-6);
    CHECK(relative_error(row.values(), expected_row) < 2e-6);
    CHECK(relative_error(col.values(), expected_col) < 2e-6);
  }
}

TEST_CASE("cpu ops: factored Adafactor keeps rare columns exact beside large ones") {
  const auto ops = make_cpu_ops();
  const std::int64_t R = 200, C = 40;
  Floats g = Random(2).normal(R * C);
  for (std::size_t i = 0; i < g.size(); ++i)
    g[i] *= std::pow(10.0f, static_cast<float>(i % C) / -4.0f);
  const AdafactorScalars scalars = scalars_of(0, 1.0f);
  Doubles w(g.size(), 1.0), row(static_cast<std::size_t>(R)), col(static_cast<std::size_t>(C));
  ref::adafactor_factored(w.data(), row.data(), col.data(), convert<double>(g).data(),
                          widen(scalars), 1, R, C);
  const Buffer value(*ops, {1, R, C}, 1.0f), row_buffer(*ops, {1, R}), col_buffer(*ops, {1, C});
  ops->adafactor_factored(value, row_buffer, col_buffer, Buffer(*ops, {1, R, C}, g), scalars);
  const Floats found = col_buffer.values();
  for (std::size_t c = 0; c < found.size(); ++c)
    CHECK(static_cast<double>(found[c]) == Approx(col[c]).epsilon(2e-6));
  CHECK(relative_error(value.values(), w) < 1e-6);
}

TEST_CASE("cpu ops: unfactored Adafactor") {
  const auto ops = make_cpu_ops();
  Random random(3);
  for (const Shape& shape : {Shape{1}, Shape{17}, Shape{40000}, Shape{16, 33}, Shape{0}}) {
    INFO(shape.to_string());
    const Floats w = random.normal(shape);
    Doubles expected_w = convert<double>(w), expected_v(w.size(), NAN);
    const Buffer value(*ops, shape, w), v(*ops, shape);
    for (int step = 0; step < 4; ++step) {
      Floats g = random.normal(shape, step == 2 ? 10.0 : 0.1);
      if (!g.empty()) g[0] = 0.0f;
      const AdafactorScalars scalars = scalars_of(step, 0.5f);
      ref::adafactor_full(expected_w.data(), expected_v.data(), convert<double>(g).data(),
                          widen(scalars), shape.num_elements());
      ops->adafactor_full(value, v, Buffer(*ops, shape, g), scalars);
    }
    CHECK(relative_error(value.values(), expected_w) < 1e-6);
    CHECK(relative_error(v.values(), expected_v) < 1e-6);
  }
}

}  // namespace
}  // namespace openmoe
