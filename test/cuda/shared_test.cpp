// Ops on vocabularies and matrices that ranks share: the device's ranks against the CPU's, both
// against the same op on the whole, and every rank against its neighbours.
#include "test/cuda/played_ranks.h"

using namespace openmoe;
using openmoe::test::OpRun;
using openmoe::test::waits_of;

namespace {

using Floats = std::vector<float>;
using Axis = SharedMatrix::Axis;

Floats normals(const std::string& name, std::int64_t count, double scale = 1.0) {
  const Rng rng(7, stream_id(name));
  Floats values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(scale * rng.normal_at(i));
  return values;
}

// Rows [row, row_end) and columns [column, column_end) of every matrix of a stack (n, R, C).
struct Block {
  std::int64_t row, row_end, column, column_end;
  std::int64_t R() const { return row_end - row; }
  std::int64_t C() const { return column_end - column; }
};
Floats part_of(const Floats& whole, std::int64_t R, std::int64_t C, const Block& block) {
  Floats part;
  for (std::int64_t s = 0; s * R * C < static_cast<std::int64_t>(whole.size()); ++s)
    for (std::int64_t r = block.row; r < block.row_end; ++r)
      for (std::int64_t c = block.column; c < block.column_end; ++c)
        part.push_back(whole[static_cast<std::size_t>((s * R + r) * C + c)]);
  return part;
}

std::string of_rank(const char* name, int rank) {
  return name + std::to_string(rank);
}

struct LossCase {
  std::int64_t n, V;
  std::vector<std::int64_t> bounds;  // of the ranks' columns
  float scale;
};

// Row 3 ties over ranks, row 5 within one; weights of zero, in one case all of them.
void check_shared_loss(const LossCase& c, bool weightless = false) {
  INFO("n " << c.n << ", V " << c.V << ", ranks " << c.bounds.size() - 1 << ", scale " << c.scale);
  const std::int64_t n = c.n, V = c.V;
  Floats logits = normals("logits", n * V, 4.0), weights(static_cast<std::size_t>(n), 1.0f);
  std::vector<std::int32_t> targets(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    targets[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i * 7919 % V);
    if (i % 4 == 2 || weightless) weights[static_cast<std::size_t>(i)] = 0.0f;
    if (i % 4 == 1) weights[static_cast<std::size_t>(i)] = 0.25f;
  }
  logits[static_cast<std::size_t>(3 * V + 1)] = logits[static_cast<std::size_t>(4 * V - 1)] = 90.0f;
  targets[3] = 1;
  logits[static_cast<std::size_t>(5 * V + V - 2)] = logits[static_cast<std::size_t>(6 * V - 1)] =
      90.0f;
  targets[5] = static_cast<std::int32_t>(V - 1);
  test::compare_backends(
      [&](OpRun& run) {
        const Tensor target = run.ints("targets", {n}, targets),
                     weight = run.floats("weights", {n}, weights);
        const Tensor whole = run.floats("whole", {n, V}, logits),
                     loss = run.poisoned("whole loss", {n});
        const LossSums expected =
            run.ops().softmax_cross_entropy(whole, target, weight, loss, 1e-2f, c.scale);
        const Floats gradient = run.read_floats(whole), losses = run.read_floats(loss);
        const auto ranks = static_cast<int>(c.bounds.size()) - 1;
        test::PlayedRanks<LogitSums> played(ranks);
        played.play(run, [&](OpRun& own, int rank, const auto& combine) {
          const std::int64_t first = c.bounds[static_cast<std::size_t>(rank)],
                             end = c.bounds[static_cast<std::size_t>(rank) + 1];
          const Block columns{0, n, first, end};
          const Tensor mine = own.floats(of_rank("logits", rank), {n, end - first},
                                         part_of(logits, n, V, columns)),
                       my_loss = own.poisoned(of_rank("loss", rank), {n});
          const SharedVocabulary shared{{.first = first, .total = V}, combine};
          const LossSums sums = run.ops().softmax_cross_entropy(
              mine, target, weight, rank == 0 ? Tensor{} : my_loss, 1e-2f, c.scale, &shared);
          if (&own != &run) return;
          run.number(of_rank("cross_entropy", rank), sums.cross_entropy);
          run.number(of_rank("log_z_square", rank), sums.log_z_square);
          run.number(of_rank("correct", rank), sums.correct);
          CHECK(sums.cross_entropy == Approx(expected.cross_entropy).epsilon(2e-6));
          CHECK(sums.log_z_square == Approx(expected.log_z_square).epsilon(2e-6));
          CHECK(sums.correct == expected.correct);
          CHECK(test::relative_difference(run.read_floats(mine),
                                          part_of(gradient, n, V, columns)) <= 5e-6);
          if (rank > 0) CHECK(test::relative_difference(run.read_floats(my_loss), losses) <= 2e-6);
        });
        CHECK(played.num_sums() == 1);
      },
      5e-6);
}

struct MatrixCase {
  std::int64_t stack, R, C;
  Axis axis;
  std::vector<std::int64_t> inner;  // bounds between the ranks' rows or columns
  int steps = 1;
};

void check_shared_factored(const MatrixCase& c) {
  const bool by_rows = c.axis == Axis::rows;
  std::vector<std::int64_t> bounds = {0};
  bounds.insert(bounds.end(), c.inner.begin(), c.inner.end());
  bounds.push_back(by_rows ? c.R : c.C);
  const auto ranks = static_cast<int>(bounds.size()) - 1;
  const std::int64_t size = c.stack * c.R * c.C;
  INFO("stack " << c.stack << ", R " << c.R << ", C " << c.C << ", by rows " << by_rows
                << ", ranks " << ranks);
  const Floats start = normals("w", size, 0.02);
  const Floats gradients[] = {normals("g0", size), normals("g1", size, 1e-3)};
  const auto scalars_of = [](int step) {
    return AdafactorScalars{.learning_rate = 0.01f,
                            .decay = step == 0 ? 0.0f : 0.43f,
                            .clip_threshold = step == 0 ? 0.5f : 1.0f};
  };
  test::compare_backends(
      [&](OpRun& run) {
        const Tensor w = run.floats("w", {c.stack, c.R, c.C}, start),
                     row = run.poisoned("row", {c.stack, c.R}),
                     col = run.poisoned("col", {c.stack, c.C});
        for (int step = 0; step < c.steps; ++step)
          run.ops().adafactor_factored(
              w, row, col, run.floats(of_rank("g", step), {c.stack, c.R, c.C}, gradients[step]),
              scalars_of(step));
        const Floats whole = run.read_floats(w), common = run.read_floats(by_rows ? col : row);
        std::vector<Floats> commons;  // by rank
        test::PlayedRanks<double> played(ranks);
        played.play(run, [&](OpRun& own, int rank, const auto& sum) {
          const std::int64_t begin = bounds[static_cast<std::size_t>(rank)],
                             end = bounds[static_cast<std::size_t>(rank) + 1];
          const Block block = by_rows ? Block{begin, end, 0, c.C} : Block{0, c.R, begin, end};
          const Shape shape{c.stack, block.R(), block.C()};
          const Tensor my_w =
              own.floats(of_rank("w", rank), shape, part_of(start, c.R, c.C, block));
          const Tensor my_row = own.poisoned(of_rank("row", rank), {c.stack, block.R()}),
                       my_col = own.poisoned(of_rank("col", rank), {c.stack, block.C()});
          const SharedMatrix shared{c.axis, c.R * c.C, sum};
          for (int step = 0; step < c.steps; ++step)
            own.ops().adafactor_factored(my_w, my_row, my_col,
                                         own.floats(of_rank("own g", 2 * rank + step), shape,
                                                    part_of(gradients[step], c.R, c.C, block)),
                                         scalars_of(step), &shared);
          if (&own != &run) return;
          CHECK(test::relative_difference(run.read_floats(my_w), part_of(whole, c.R, c.C, block)) <=
                2e-6);
          commons.push_back(run.read_floats(by_rows ? my_col : my_row));
        });
        for (const Floats& statistic : commons) {
          CHECK(test::same_bits(statistic, commons.front()));
          CHECK(test::relative_difference(statistic, common) <= 2e-6);
        }
      },
      5e-6);
}

}  // namespace

TEST_CASE("shared vocabulary: losses and gradients are those of all columns", "[cuda]") {
  for (const float scale : {0.0f, 0.5f}) {
    check_shared_loss({7, 101, {0, 50, 101}, scale});
    check_shared_loss({9, 101, {0, 33, 67, 101}, scale});
    check_shared_loss({6, 2100, {0, 40, 2096, 2100}, scale});
    check_shared_loss({6, 8, {0, 8}, scale});
  }
  check_shared_loss({6, 24, {0, 8, 24}, 0.5f}, true);
}

TEST_CASE("shared vocabulary: the sums of rows that do not count, or are not numbers", "[cuda]") {
  test::compare_backends([](OpRun& run) {
    const float infinity = std::numeric_limits<float>::infinity();
    std::vector<float> logits(4 * 5, -infinity);
    logits[1] = 3.0f;  // row 0: one number
    for (int j = 5; j < 10; ++j) logits[static_cast<std::size_t>(j)] = std::nanf("");
    const Tensor weights = run.floats("weights", {4}, {1.0f, 0.0f, 1.0f, 2.0f}),
                 targets = run.ints("targets", {4}, {10, 11, 14, 99});
    logits[15] = logits[19] = 7.0f;
    std::vector<LogitSums> seen;
    const SharedVocabulary shared{{.first = 10, .total = 100}, [&](std::span<LogitSums> sums) {
                                    seen.assign(sums.begin(), sums.end());
                                    for (LogitSums& s : sums) s = {0.0, 1.0, 0.0, 0};
                                  }};
    run.ops().softmax_cross_entropy(run.floats("logits", {4, 5}, logits), targets, weights, {},
                                    0.0f, 0.0f, &shared);
    REQUIRE(seen.size() == 4);
    CHECK(seen[0].largest == 3.0);
    CHECK(seen[0].sum == 1.0);
    CHECK(seen[0].target == -std::numeric_limits<double>::infinity());
    CHECK(seen[0].argmax == 11);
    CHECK((seen[1].largest == 0.0 && seen[1].sum == 0.0 && seen[1].target == 0.0));
    CHECK(seen[3].target == 0.0);
    CHECK(seen[3].argmax == 10);
    CHECK(seen[3].sum == 2.0);
  });
}

TEST_CASE("shared vocabulary: a bad target stops every rank before the ranks meet", "[cuda]") {
  const auto cuda = make_cuda_ops(0);
  OpRun run(*cuda);
  bool met = false;
  const SharedVocabulary shared{{.first = 4, .total = 12},
                                [&](std::span<LogitSums>) { met = true; }};
  const Tensor logits = run.normal("logits", {2, 4}), weights = run.floats("w", {2}, {1.0f, 1.0f});
  for (const std::int32_t bad : {-1, 12}) {
    const auto other = make_cuda_ops(0);
    OpRun own(*other);
    CHECK_THROWS_WITH(
        other->softmax_cross_entropy(own.normal("logits", {2, 4}), own.ints("t", {2}, {0, bad}),
                                     own.floats("w", {2}, {1.0f, 1.0f}), {}, 0.0f, 1.0f, &shared),
        Catch::Contains("target is outside the vocabulary"));
  }
  CHECK_FALSE(met);
  cuda->softmax_cross_entropy(logits, run.ints("t", {2}, {0, 11}), weights, {}, 0.0f, 1.0f,
                              &shared);
  CHECK(met);
}

TEST_CASE("embedding of part of a vocabulary: zero elsewhere, gradients where the row is",
          "[cuda]") {
  const std::int64_t V = 53, N = 600;
  Rng rng(3, stream_id("ids"));
  std::vector<std::int32_t> ids(static_cast<std::size_t>(N));
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(rng.next_below(V));
  for (std::size_t i = 0; i < 100; ++i) ids[i] = 20;  // over several runs of the backward
  for (const std::int64_t D : {5, 8})
    test::compare_backends(
        [&](OpRun& run) {
          const Tensor id = run.ints("ids", {N}, ids), dx = run.normal("dx", {N, D});
          const Floats table = normals("table", V * D);
          const Tensor whole = run.floats("table", {V, D}, table), x = run.poisoned("x", {N, D}),
                       dwhole = run.floats("dtable", {V, D}, table);
          run.ops().embedding_forward(x, whole, id);
          run.ops().embedding_backward(dwhole, dx, id);
          Floats sum(static_cast<std::size_t>(N * D), 0.0f), gradient;
          const std::vector<std::int64_t> bounds = {0, 17, 17, 40, 53};
          for (int rank = 0; rank < 4; ++rank) {
            const std::int64_t first = bounds[static_cast<std::size_t>(rank)],
                               end = bounds[static_cast<std::size_t>(rank) + 1];
            const Floats values = part_of(table, V, D, {first, end, 0, D});
            const VocabularyRange range{.first = first, .total = V};
            const Tensor mine = run.floats(of_rank("mine", rank), {end - first, D}, values),
                         own_x = run.poisoned(of_rank("x", rank), {N, D}),
                         dmine = run.floats(of_rank("dmine", rank), {end - first, D}, values);
            run.ops().embedding_forward(own_x, mine, id, range);
            run.ops().embedding_backward(dmine, dx, id, range);
            const Floats looked_up = run.read_floats(own_x), added = run.read_floats(dmine);
            for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += looked_up[i];
            gradient.insert(gradient.end(), added.begin(), added.end());
          }
          CHECK(sum == run.read_floats(x));
          CHECK(test::relative_difference(gradient, run.read_floats(dwhole)) <= 2e-6);
        },
        2e-6);
  const auto cuda = make_cuda_ops(0);
  OpRun run(*cuda);
  const Tensor table = run.normal("table", {5, 4}), x = run.poisoned("x", {2, 4});
  cuda->embedding_forward(x, table, run.ints("ids", {2}, {0, 11}), {.first = 4, .total = 12});
  CHECK(cuda->sum_of_squares(x) == 0.0);
  cuda->embedding_forward(x, table, run.ints("bad", {2}, {0, 12}), {.first = 4, .total = 12});
  CHECK_THROWS_WITH(cuda->sum_of_squares(table), Catch::Contains("token id is outside the table"));
  CHECK_THROWS_WITH(
      cuda->embedding_forward(x, table, run.ints("ids2", {2}, {0, 1}), {.first = 8, .total = 12}),
      Catch::Contains("rows [8, 13) of 12"));
}

TEST_CASE("Adafactor on shared matrices is that on whole ones", "[cuda]") {
  for (const Axis axis : {Axis::rows, Axis::columns}) {
    check_shared_factored({2, 17, 29, axis, {4, 9}, 2});
    check_shared_factored({2, 70, 260, axis, {66, 66}});  // one rank has nothing
    check_shared_factored({0, 4, 4, axis, {2}});
  }
  check_shared_factored({1, 266, 9, Axis::rows, {258}});
  check_shared_factored({1, 9, 266, Axis::columns, {258}});
}

TEST_CASE("Adafactor full on shared tensors is that on whole ones", "[cuda]") {
  const std::int64_t n = 1001;
  const Floats start = normals("w", n), gradient = normals("g", n, 30.0);
  const AdafactorScalars scalars{.learning_rate = 0.1f};
  test::compare_backends(
      [&](OpRun& run) {
        const Tensor w = run.floats("w", {n}, start), v = run.poisoned("v", {n});
        run.ops().adafactor_full(w, v, run.floats("g", {n}, gradient), scalars);
        const Floats whole = run.read_floats(w);
        const std::vector<std::int64_t> bounds = {0, 300, 300, n};
        test::PlayedRanks<double> played(3);
        played.play(run, [&](OpRun& own, int rank, const auto& sum) {
          const std::int64_t begin = bounds[static_cast<std::size_t>(rank)],
                             end = bounds[static_cast<std::size_t>(rank) + 1];
          const Block block{0, 1, begin, end};
          const Tensor my_w = own.floats(of_rank("w", rank), {end - begin},
                                         part_of(start, 1, n, block)),
                       my_v = own.poisoned(of_rank("v", rank), {end - begin});
          const SharedMatrix shared{Axis::rows, n, sum};
          own.ops().adafactor_full(
              my_w, my_v,
              own.floats(of_rank("g", rank), {end - begin}, part_of(gradient, 1, n, block)),
              scalars, &shared);
          if (&own != &run) return;
          CHECK(test::relative_difference(run.read_floats(my_w), part_of(whole, 1, n, block)) <=
                1e-6);
        });
        CHECK(played.num_sums() == 1);
      },
      5e-6);
}

TEST_CASE("shared ops wait for the host once per exchange, unshared ones not for a rank",
          "[cuda]") {
  const auto cuda = make_cuda_ops(0);
  OpRun run(*cuda);
  const SharedVocabulary vocabulary{{.first = 0, .total = 9}, [](std::span<LogitSums>) {}};
  const Tensor logits = run.normal("logits", {3, 5}), targets = run.ints("t", {3}, {0, 8, 1}),
               weights = run.floats("weights", {3}, {1.0f, 1.0f, 1.0f});
  const auto loss = [&] {
    cuda->softmax_cross_entropy(logits, targets, weights, {}, 0.0f, 1.0f, &vocabulary);
  };
  loss();  // memory is found at the first call
  CHECK(waits_of(loss) == 1);
  const Tensor w = run.normal("w", {2, 5, 6}), g = run.normal("g", {2, 5, 6}),
               row = run.normal("row", {2, 5}), col = run.normal("col", {2, 6});
  const SharedMatrix matrix{Axis::rows, 60, [](std::span<double>) {}};
  const auto factored = [&](const SharedMatrix* shared) {
    return waits_of([&] { cuda->adafactor_factored(w, row, col, g, {}, shared); });
  };
  factored(&matrix);
  CHECK(factored(&matrix) == 2);
  CHECK(factored(nullptr) == 0);
  const Tensor v = run.normal("v", {2, 5, 6});
  CHECK(waits_of([&] { cuda->adafactor_full(w, v, g, {}, &matrix); }) == 1);
  CHECK(waits_of([&] { cuda->adafactor_full(w, v, g, {}); }) == 0);
}
