// The clock of a device's ops: profiles, traces and the slowest rank are timed by it.
#include "core/op_profile.h"
#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;
using openmoe::test::waits_of;

TEST_CASE("ops of a device are timed without a wait until their times are asked for", "[cuda]") {
  const auto cuda = make_cuda_ops(0);
  OpRun run(*cuda);
  const Tensor x = run.normal("x", {5000}), y = run.normal("y", {5000});
  OpProfile profile(cuda->make_clock());
  cuda->set_profile(&profile);
  CHECK(waits_of([&] {
          cuda->enter("first part");
          cuda->multiply(x, 2.0f);
          cuda->add_accumulate(y, x);
          cuda->enter("second part");
          cuda->multiply(x, 0.5f);
        }) == 0);
  cuda->set_profile(nullptr);
  std::vector<OpProfile::Entry> ops;
  CHECK(waits_of([&] { ops = profile.entries(); }) > 0);
  REQUIRE(ops.size() == 2);
  for (const OpProfile::Entry& op : ops) {
    CHECK(op.calls == (op.op == "multiply" ? 2 : 1));
    CHECK(op.seconds > 0.0);
  }
  const auto parts = profile.parts();
  REQUIRE(parts.size() == 2);
  for (const OpProfile::Entry& part : parts) CHECK(part.calls == (part.op == "first part" ? 2 : 1));
  CHECK(profile.total_seconds() == Approx(ops[0].seconds + ops[1].seconds));
}

TEST_CASE("places of a device's clock follow each other, and begin again when forgotten",
          "[cuda]") {
  const auto cuda = make_cuda_ops(0);
  OpRun run(*cuda);
  const Tensor x = run.normal("x", {300000});
  const std::unique_ptr<OpClock> clock = cuda->make_clock(), other = cuda->make_clock();
  for (int round = 0; round < 2; ++round) {
    REQUIRE(clock->mark() == 0);
    other->mark();
    cuda->multiply(x, 2.0f);
    REQUIRE(clock->mark() == 1);
    cuda->multiply(x, 2.0f);
    REQUIRE(clock->mark() == 2);
    const double first = clock->seconds(0, 1), second = clock->seconds(1, 2);
    CHECK(first > 0.0);
    CHECK(second > 0.0);
    CHECK(clock->seconds(0, 2) == Approx(first + second));
    CHECK(clock->seconds(2, 2) == 0.0);
    clock->forget();
  }
  CHECK(other->seconds(0, 1) > 0.0);
}

TEST_CASE("an op that fails says so though it is timed", "[cuda]") {
  const auto cuda = make_cuda_ops(0);
  OpRun run(*cuda);
  const Tensor table = run.normal("table", {11, 6}), x = run.poisoned("x", {3, 6}),
               ids = run.ints("ids", {3}, {2, 11, 4});
  OpProfile profile(cuda->make_clock());
  cuda->set_profile(&profile);
  cuda->embedding_forward(x, table, ids);
  CHECK_THROWS_WITH(cuda->sum_of_squares(table), Catch::Contains("token id is outside the table"));
  cuda->set_profile(nullptr);
  const std::vector<OpProfile::Entry> ops = profile.entries();
  CHECK(std::any_of(ops.begin(), ops.end(),
                    [](const auto& op) { return op.op == "sum_of_squares" && op.calls == 1; }));
}
