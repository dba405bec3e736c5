// TensorGroup on every size of group: what its verbs move and add up, and ops on shared
// vocabularies and matrices against the same ops on whole ones.
#include "core/tensor_group.h"

#include <cmath>
#include <memory>
#include <vector>

#include "core/base/rng.h"
#include "core/cpu/cpu_ops.h"
#include "parallel/rank_tensor_group.h"
#include "test/support/ranks.h"

namespace openmoe::test {
namespace {

using Floats = std::vector<float>;

Tensor view(Floats& values, const Shape& shape) {
  return host_view(values.data(), shape);
}

// The group of all ranks.
struct Group {
  Group() : ops(make_cpu_ops()), tensor(make_tensor_group(*ops, mpi().world(), mpi().world())) {
    const std::int64_t bytes = 60 * 12 * 4;  // more than any tensor here
    Arena dry;
    tensor->allocate_buffers(dry, bytes, bytes * size());
    arena = std::make_unique<Arena>(*ops, dry.used_bytes());
    tensor->allocate_buffers(*arena, bytes, bytes * size());
  }
  std::int64_t size() const { return mpi().world_size(); }
  std::int64_t rank() const { return mpi().world_rank(); }

  std::unique_ptr<Ops> ops;
  std::unique_ptr<TensorGroup> tensor;
  std::unique_ptr<Arena> arena;
};

// Element (i, j) of what all ranks know, or of the part of rank r of a sum: small integers.
float whole_value(std::int64_t i, std::int64_t j) {
  return static_cast<float>(100 * i + j);
}
float part_value(std::int64_t r, std::int64_t i, std::int64_t j) {
  return static_cast<float>((7 * r + 3 * i + j) % 13 - 6);
}
float sum_value(std::int64_t ranks, std::int64_t i, std::int64_t j) {
  float sum = 0.0f;
  for (std::int64_t r = 0; r < ranks; ++r) sum += part_value(r, i, j);
  return sum;
}

template <typename Value>
Floats filled(std::int64_t rows, std::int64_t width, Value&& value) {
  Floats values(static_cast<std::size_t>(rows * width));
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < width; ++j)
      values[static_cast<std::size_t>(i * width + j)] = value(i, j);
  return values;
}

Floats random(const char* name, std::int64_t count) {
  const Rng rng(11, stream_id(name));
  Floats values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(rng.normal_at(static_cast<std::uint64_t>(i)));
  return values;
}

// Columns [begin, end) of (rows, width).
Floats columns_of(const Floats& values, std::int64_t width, std::int64_t begin, std::int64_t end) {
  const auto rows = static_cast<std::int64_t>(values.size()) / width;
  return filled(rows, end - begin, [&](std::int64_t i, std::int64_t j) {
    return values[static_cast<std::size_t>(i * width + begin + j)];
  });
}

bool are_close(const Floats& a, const Floats& b, double tolerance) {
  double largest = 0.0, difference = 0.0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
    const double d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    difference = std::isnan(d) ? 1e30 : std::max(difference, d);
  }
  return a.size() == b.size() && difference <= tolerance * std::max(largest, 1e-30);
}

}  // namespace

TEST_CASE("rows and columns go where they belong") {
  Group group;
  const std::int64_t ranks = group.size(), own = 5, n = own * ranks, width = 2 * ranks;
  const std::int64_t first = group.rank() * own;
  Floats rows = filled(n, width, [&](std::int64_t i, std::int64_t j) {
    return i / own == group.rank() ? whole_value(i, j) : -1.0f;
  });
  group.tensor->gather_rows(view(rows, {n, width}));
  REQUIRE_ALL_RANKS(rows == filled(n, width, whole_value));
  if (ranks == 1) return;  // a group of one has no columns of its own

  Floats mine = filled(own, width, [&](auto i, auto j) { return whole_value(first + i, j); });
  Floats columns(static_cast<std::size_t>(n * 2), -1.0f);
  group.tensor->rows_to_columns(view(columns, {n, 2}), view(mine, {own, width}));
  const std::int64_t column = 2 * group.rank();
  REQUIRE_ALL_RANKS(columns == columns_of(rows, width, column, column + 2));
  Floats back(mine.size(), -1.0f);
  group.tensor->columns_to_rows(view(back, {own, width}), view(columns, {n, 2}));
  REQUIRE_ALL_RANKS(back == mine);

  // Any number of rows, none as well.
  for (const std::int64_t count : {n, std::int64_t{3}, std::int64_t{0}}) {
    Floats all(static_cast<std::size_t>(count * width), -1.0f);
    columns.resize(static_cast<std::size_t>(2 * count));
    group.tensor->gather_columns(view(all, {count, width}), view(columns, {count, 2}));
    REQUIRE_ALL_RANKS(all == filled(count, width, whole_value));
  }
}

TEST_CASE("sums over ranks, whole, by rows and by columns") {
  Group group;
  const std::int64_t ranks = group.size(), own = 5, n = own * ranks, width = 2 * ranks;
  const Floats part =
      filled(n, width, [&](auto i, auto j) { return part_value(group.rank(), i, j); });
  const Floats total = filled(n, width, [&](auto i, auto j) { return sum_value(ranks, i, j); });

  Floats rows = part;
  group.tensor->sum_rows(view(rows, {n, width}));
  const auto begin = rows.begin() + group.rank() * own * width, end = begin + own * width;
  REQUIRE_ALL_RANKS(std::equal(begin, end, total.begin() + group.rank() * own * width));
  Floats everywhere = part;
  group.tensor->sum(view(everywhere, {n, width}));
  REQUIRE_ALL_RANKS(everywhere == total);
  std::vector<double> reals = {1.0, static_cast<double>(group.rank())};
  group.tensor->sum(reals);
  REQUIRE_ALL_RANKS((reals == std::vector<double>{static_cast<double>(ranks),
                                                  static_cast<double>(ranks * (ranks - 1)) / 2.0}));
  if (ranks == 1) return;

  Floats partial = part, columns(static_cast<std::size_t>(2 * n));
  group.tensor->sum_columns(view(columns, {n, 2}), view(partial, {n, width}));
  REQUIRE_ALL_RANKS(columns == columns_of(total, width, 2 * group.rank(), 2 * group.rank() + 2));
  // Rounded once, after the sum: 1 and 2^-9 are not what bf16 can add.
  partial = filled(n, width, [&](auto, auto) { return group.rank() == 0 ? 1.0f : 0.001953125f; });
  std::vector<BFloat16> rounded(columns.size());
  group.tensor->sum_columns(host_view(rounded.data(), {n, 2}), view(partial, {n, width}));
  const BFloat16 expected(1.0f + 0.001953125f * static_cast<float>(ranks - 1));
  REQUIRE_ALL_RANKS(std::all_of(rounded.begin(), rounded.end(), [&](BFloat16 value) {
    return static_cast<float>(value) == static_cast<float>(expected);
  }));
}

TEST_CASE("a shared vocabulary gives the whole one's losses, gradients and embeddings") {
  Group group;
  const std::int64_t ranks = group.size(), n = 9, V = 101, D = 4;
  const std::int64_t begin = V * group.rank() / ranks, end = V * (group.rank() + 1) / ranks;
  Floats logits = random("logits", n * V), weights(n, 1.0f), losses(n), ours(n);
  for (float& logit : logits) logit *= 8.0f;
  weights[2] = 0.0f;
  weights[5] = 0.25f;
  // Ties over ranks go to the lower id, and row 7 has its largest logit at the very end.
  logits[3 * V + 1] = logits[3 * V + V - 1] = 90.0f;
  logits[7 * V + V - 1] = 1e4f;
  std::vector<std::int32_t> targets = {0, 100, 50, 1, 33, 34, 66, 100, 67};
  Floats part = columns_of(logits, V, begin, end);
  const SharedVocabulary shared{{.first = begin, .total = V},
                                [&](std::span<LogitSums> sums) { group.tensor->combine(sums); }};
  for (const float scale : {0.0f, 0.5f}) {
    Floats whole = logits, mine = part;
    const Tensor target = host_view(targets.data(), {n});
    const LossSums expected = group.ops->softmax_cross_entropy(
        view(whole, {n, V}), target, view(weights, {n}), view(losses, {n}), 0.01f, scale);
    const LossSums sums = group.ops->softmax_cross_entropy(
        view(mine, {n, end - begin}), target, view(weights, {n}), view(ours, {n}), 0.01f, scale,
        ranks > 1 ? &shared : nullptr);
    REQUIRE_ALL_RANKS(sums.cross_entropy == Approx(expected.cross_entropy).epsilon(1e-6));
    REQUIRE_ALL_RANKS(sums.log_z_square == Approx(expected.log_z_square).epsilon(1e-6));
    REQUIRE_ALL_RANKS(sums.correct == expected.correct);
    REQUIRE_ALL_RANKS(are_close(ours, losses, 1e-6));
    REQUIRE_ALL_RANKS(are_close(mine, columns_of(whole, V, begin, end), 2e-6));
  }

  Floats table = random("table", V * D), x(n * D),
         own_table(table.begin() + begin * D, table.begin() + end * D);
  const Tensor ids = host_view(targets.data(), {n});
  const VocabularyRange range = ranks > 1 ? shared.range : VocabularyRange{};
  group.ops->embedding_forward(view(x, {n, D}), view(own_table, {end - begin, D}), ids, range);
  group.tensor->sum(view(x, {n, D}));
  Floats looked_up = filled(n, D, [&](std::int64_t i, std::int64_t j) {
    return table[static_cast<std::size_t>(targets[static_cast<std::size_t>(i)] * D + j)];
  });
  REQUIRE_ALL_RANKS(x == looked_up);
  Floats d_table(own_table.size()), d_whole(table.size()), dx = random("dx", n * D);
  group.ops->embedding_backward(view(d_table, {end - begin, D}), view(dx, {n, D}), ids, range);
  group.ops->embedding_backward(view(d_whole, {V, D}), view(dx, {n, D}), ids);
  REQUIRE_ALL_RANKS(std::equal(d_table.begin(), d_table.end(), d_whole.begin() + begin * D));
}

TEST_CASE("Adafactor on shared matrices is Adafactor on whole ones") {
  Group group;
  const std::int64_t ranks = group.size(), stack = 2, R = 3 * ranks, C = 4 * ranks;
  const auto axis = GENERATE(SharedMatrix::Axis::rows, SharedMatrix::Axis::columns);
  const bool by_rows = axis == SharedMatrix::Axis::rows;
  const std::int64_t own_R = by_rows ? 3 : R, own_C = by_rows ? C : 4;
  const auto own_part = [&](const Floats& whole) {
    Floats part;
    for (std::int64_t s = 0; s < stack; ++s)
      for (std::int64_t r = 0; r < own_R; ++r)
        for (std::int64_t c = 0; c < own_C; ++c) {
          const std::int64_t row = by_rows ? group.rank() * own_R + r : r;
          const std::int64_t column = by_rows ? c : group.rank() * own_C + c;
          part.push_back(whole[static_cast<std::size_t>((s * R + row) * C + column)]);
        }
    return part;
  };
  const SharedMatrix shared{axis, R * C,
                            [&](std::span<double> values) { group.tensor->sum(values); }};
  const SharedMatrix* const sharing = ranks > 1 ? &shared : nullptr;
  const Shape whole_shape{stack, R, C}, part_shape{stack, own_R, own_C};
  Floats w = random("w", stack * R * C), v(w.size());
  Floats row(static_cast<std::size_t>(stack * R)), col(static_cast<std::size_t>(stack * C));
  Floats my_w = own_part(w), my_v(my_w.size());
  Floats my_row(static_cast<std::size_t>(stack * own_R)),
      my_col(static_cast<std::size_t>(stack * own_C));
  for (int step = 0; step < 3; ++step) {
    Floats g = random(step == 0 ? "g0" : step == 1 ? "g1" : "g2", stack * R * C);
    g[1] = 40.0f;  // the update is clipped
    Floats my_g = own_part(g);
    const AdafactorScalars scalars{.learning_rate = 0.1f,
                                   .decay = step == 0 ? 0.0f : 0.6f,
                                   .clip_threshold = 1.0f,
                                   .epsilon_square = 1e-30f,
                                   .epsilon_scale = 1e-3f};
    group.ops->adafactor_factored(view(w, whole_shape), view(row, {stack, R}),
                                  view(col, {stack, C}), view(g, whole_shape), scalars);
    group.ops->adafactor_factored(view(my_w, part_shape), view(my_row, {stack, own_R}),
                                  view(my_col, {stack, own_C}), view(my_g, part_shape), scalars,
                                  sharing);
    REQUIRE_ALL_RANKS(are_close(my_w, own_part(w), 1e-6));
  }
  // The statistic of the axis that is not shared is whole everywhere.
  REQUIRE_ALL_RANKS(are_close(by_rows ? my_col : my_row, by_rows ? col : row, 1e-6));

  // Unfactored: the size of the update and of the weights is that of all elements.
  Floats value = random("w", stack * R * C), g = random("g0", stack * R * C);
  Floats my_value = own_part(value), my_g = own_part(g);
  const SharedMatrix all{axis, stack * R * C, shared.sum};
  const AdafactorScalars scalars{.learning_rate = 0.1f};
  group.ops->adafactor_full(view(value, whole_shape), view(v, whole_shape), view(g, whole_shape),
                            scalars);
  group.ops->adafactor_full(view(my_value, part_shape), view(my_v, part_shape),
                            view(my_g, part_shape), scalars, ranks > 1 ? &all : nullptr);
  REQUIRE_ALL_RANKS(are_close(my_value, own_part(value), 1e-6));
}

}  // namespace openmoe::test
