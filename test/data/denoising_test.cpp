#include "data/denoising.h"

#include <map>
#include <numeric>
#include <string>

#include "test/support/catch.h"

namespace openmoe {
namespace {

TEST_CASE("denoising: segment lengths of Table 2 for 1024 inputs") {
  struct Case {
    double mean_span, density;
    std::int64_t raw, inputs, targets, spans;
  };
  const Case cases[] = {{3, 0.15, 1137, 1024, 229, 57},
                        {8, 0.15, 1178, 1024, 200, 22},
                        {3, 0.5, 1534, 1024, 1024, 256},
                        {8, 0.5, 1818, 1024, 1024, 114},
                        {64, 0.5, 2014, 1024, 1024, 16}};
  for (const Case& want : cases) {
    const SpanLengths got = span_corruption_lengths(1024, want.density, want.mean_span);
    CHECK(got.raw_tokens == want.raw);
    CHECK(got.inputs == want.inputs);
    CHECK(got.targets == want.targets);
    CHECK(num_noise_spans(got.raw_tokens, want.density, want.mean_span) == want.spans);
  }
}

TEST_CASE("denoising: rounding is half to even, counts stay within the segment") {
  CHECK(num_noise_tokens(5, 0.5) == 2);       // 2.5
  CHECK(num_noise_tokens(7, 0.5) == 4);       // 3.5
  CHECK(num_noise_tokens(2, 0.15) == 1);      // at least one
  CHECK(num_noise_tokens(2, 0.99) == 1);      // at least one clean
  CHECK(num_noise_spans(10, 0.5, 2.0) == 2);  // 5 / 2 = 2.5
  CHECK(num_noise_spans(10, 0.5, 64.0) == 1);
  CHECK(num_noise_spans(4, 0.75, 1.0) ==
        1);  // three noise tokens, but one clean token to part them
}

TEST_CASE("denoising: masks start clean, end in noise, and have the right counts for any seed") {
  std::vector<std::uint8_t> mask;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    Rng rng(seed, 5);
    const std::int64_t n = 2 + static_cast<std::int64_t>(rng.next_below(700));
    const double density = seed % 2 == 0 ? 0.15 : 0.5;
    const double mean_span = seed % 3 == 0 ? 3.0 : seed % 3 == 1 ? 8.0 : 64.0;
    draw_noise_mask(n, density, mean_span, rng, mask);
    REQUIRE(static_cast<std::int64_t>(mask.size()) == n);
    REQUIRE(mask.front() == 0);
    REQUIRE(mask.back() == 1);
    REQUIRE(std::accumulate(mask.begin(), mask.end(), std::int64_t{0}) ==
            num_noise_tokens(n, density));
    std::int64_t spans = 0;
    for (std::size_t i = 1; i < mask.size(); ++i) spans += mask[i] == 1 && mask[i - 1] == 0;
    REQUIRE(spans == num_noise_spans(n, density, mean_span));
  }
}

TEST_CASE("denoising: every composition is equally likely") {
  // 8 tokens, half noise, spans of 2: 4 clean and 4 noise tokens, each as 2 parts: (1,3), (2,2),
  // (3,1) for both: 9 masks.
  std::map<std::string, int> counts;
  Rng rng(3, 1);
  std::vector<std::uint8_t> mask;
  constexpr int kDraws = 9000;
  for (int i = 0; i < kDraws; ++i) {
    draw_noise_mask(8, 0.5, 2.0, rng, mask);
    ++counts[std::string(mask.begin(), mask.end())];
  }
  REQUIRE(counts.size() == 9);
  double chi_square = 0.0;
  for (const auto& [key, count] : counts)
    chi_square += (count - 1000.0) * (count - 1000.0) / 1000.0;
  CHECK(chi_square < 26.1);  // 8 degrees of freedom, 99.9%
}

TEST_CASE("denoising: spans are replaced by falling sentinels on both sides") {
  const std::vector<std::int32_t> ids = {10, 11, 12, 13, 14, 15, 16};
  const std::vector<std::uint8_t> mask = {0, 0, 1, 0, 1, 1, 1};
  std::vector<std::int32_t> inputs = {7};  // a mode tag
  std::vector<std::int32_t> targets;
  corrupt_spans(ids, mask, 99, inputs, targets);
  CHECK(inputs == std::vector<std::int32_t>{7, 10, 11, 99, 13, 98});
  CHECK(targets == std::vector<std::int32_t>{99, 12, 98, 14, 15, 16});
}

}  // namespace
}  // namespace openmoe
