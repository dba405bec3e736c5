// What a profile adds up, by a clock that goes as the test says.
#include "core/op_profile.h"

#include <algorithm>

#include "core/cpu/cpu_ops.h"
#include "test/support/catch.h"
#include "test/support/manual_clock.h"

namespace openmoe::test {

using Hand = ManualClock::Hand;

TEST_CASE("a profile adds up calls, times and arithmetic, by op and by part") {
  Hand hand;
  OpProfile profile(std::make_unique<ManualClock>(hand));
  const auto run = [&](const char* op, double seconds, double flops) {
    profile.begin();
    hand.now += seconds;
    profile.add(op, flops);
    hand.now += 100.0;  // between ops
  };
  profile.enter("ffn");
  run("linear", 1.0, 8.0);
  run("norm", 2.0, 0.0);
  profile.enter("head");
  run("linear", 4.0, 2.0);
  const auto ops = profile.entries();
  REQUIRE(ops.size() == 2);
  CHECK(ops[0].op == "linear");
  CHECK(ops[0].calls == 2);
  CHECK(ops[0].seconds == 5.0);
  CHECK(ops[0].flops == 10.0);
  CHECK(ops[0].product_seconds == 5.0);
  CHECK(ops[1].seconds == 2.0);
  CHECK(ops[1].product_seconds == 0.0);
  const auto parts = profile.parts();
  REQUIRE(parts.size() == 2);
  CHECK(parts[0].op == "head");
  CHECK(parts[1].op == "ffn");
  CHECK(parts[1].seconds == 3.0);
  CHECK(profile.total_seconds() == 7.0);
  // An op within an op: both have their whole time.
  profile.begin();
  hand.now += 1.0;
  run("inner", 1.0, 0.0);
  profile.add("outer", 0.0);
  const auto nested = profile.entries();
  const auto outer = std::find_if(nested.begin(), nested.end(),
                                  [](const OpProfile::Entry& op) { return op.op == "outer"; });
  REQUIRE(outer != nested.end());
  CHECK(outer->seconds == 102.0);
}

TEST_CASE("a profile of a long run keeps few places, and its fault meets who begins an op") {
  Hand hand;
  OpProfile profile(std::make_unique<ManualClock>(hand));
  const auto ops = make_cpu_ops();
  ops->set_profile(&profile);
  std::vector<float> values(4, 1.0f);
  const Tensor x = host_view(values.data(), {4});
  std::size_t most = 0;
  for (int i = 0; i < 20000; ++i) {
    hand.now += 1.0;
    ops->multiply(x, 1.0f);
    most = std::max(most, hand.num_places);
  }
  CHECK(most == 2 * kMostUntimedCalls);
  hand.is_broken = true;
  const auto until_it_fails = [&] {
    for (int i = 0; i < 20000; ++i) ops->multiply(x, 1.0f);
  };
  CHECK_THROWS_WITH(until_it_fails(), "the clock is broken");
  hand.is_broken = false;
  ops->set_profile(nullptr);
  REQUIRE(profile.entries().size() == 1);
  CHECK(profile.entries()[0].calls > 20000);
}

}  // namespace openmoe::test
