// The backward must add the tokens of an id in one order, however they are spread: in one run of
// sorted tokens, over many, or all the same.
#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

namespace {

void check_embedding(std::int64_t V, std::int64_t D, const std::vector<std::int32_t>& ids) {
  const auto N = static_cast<std::int64_t>(ids.size());
  test::compare_backends(
      [&](OpRun& run) {
        const Tensor table = run.normal("table", {V, D}), x = run.poisoned("x", {N, D}),
                     id = run.ints("ids", {N}, ids);
        const Tensor dtable = run.normal("dtable", {V, D}), dx = run.normal("dx", {N, D});
        run.ops().embedding_forward(x, table, id);
        run.ops().embedding_backward(dtable, dx, id);
      },
      2e-6);
}

std::vector<std::int32_t> random_ids(std::int64_t N, std::uint64_t V) {
  Rng rng(3, stream_id("ids"));
  std::vector<std::int32_t> ids(static_cast<std::size_t>(N));
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(rng.next_below(V));
  return ids;
}

}  // namespace

TEST_CASE("embedding: few and many tokens per id, odd widths", "[cuda]") {
  check_embedding(11, 5, {});
  check_embedding(11, 5, {10});
  check_embedding(11, 8, {3, 3, 0, 10, 3});
  check_embedding(1, 12, std::vector<std::int32_t>(77, 0));
  check_embedding(7, 260, random_ids(333, 7));
  check_embedding(70000, 3, random_ids(97, 70000));
}

TEST_CASE("embedding: more tokens than one tile of the sort", "[cuda]") {
  check_embedding(300, 4, random_ids(5000, 300));
  std::vector<std::int32_t> mostly_one(4500, 17);
  for (std::size_t i = 0; i < mostly_one.size(); i += 100)
    mostly_one[i] = static_cast<std::int32_t>(i / 100);
  check_embedding(60, 4, mostly_one);
}

TEST_CASE("embedding: an id outside the table is reported at the next wait", "[cuda]") {
  for (const std::int32_t bad : {-1, 11}) {
    const auto cuda = make_cuda_ops(0);
    OpRun run(*cuda);
    const Tensor table = run.normal("table", {11, 6}), x = run.poisoned("x", {3, 6}),
                 ids = run.ints("ids", {3}, {2, bad, 4});
    cuda->embedding_forward(x, table, ids);
    const std::vector<float> rows = run.read_floats(x), expected = run.read_floats(table);
    CHECK(std::isnan(rows[6]));
    CHECK(rows[12] == expected[24]);
    CHECK_THROWS_WITH(cuda->sum_of_squares(table),
                      Catch::Contains("token id is outside the table"));
  }
  const auto cuda = make_cuda_ops(0);
  OpRun run(*cuda);
  const Tensor dtable = run.normal("dtable", {4, 2}), dx = run.normal("dx", {2, 2}),
               ids = run.ints("ids", {2}, {4, 1});
  const std::vector<float> before = run.read_floats(dtable);
  cuda->embedding_backward(dtable, dx, ids);
  const std::vector<float> after = run.read_floats(dtable);
  CHECK(before[0] == after[0]);
  CHECK(before[2] != after[2]);
  CHECK_THROWS_WITH(cuda->sum_of_squares(dtable), Catch::Contains("token id is outside the table"));
}
