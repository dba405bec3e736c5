// Ops that bring rows in order for their way between ranks, against loops over elements.
#include <numeric>
#include <vector>

#include "core/cpu/cpu_ops.h"
#include "test/support/catch.h"
#include "test/support/message_of.h"

namespace openmoe::test {
namespace {

std::vector<float> numbered(std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  std::iota(values.begin(), values.end(), 1.0f);
  return values;
}

Tensor view(std::vector<float>& values, const Shape& shape) {
  return host_view(values.data(), shape);
}

float at(const std::vector<float>& values, std::int64_t i) {
  return values[static_cast<std::size_t>(i)];
}

}  // namespace

TEST_CASE("rows are copied to their stretches, and no other row is written") {
  const auto ops = make_cpu_ops();
  // More rows than one thread is given, in stretches of very different lengths.
  const std::int64_t W = 33, rows = 4000;
  std::vector<float> src = numbered(rows * W), dst(static_cast<std::size_t>((rows + 3) * W), -1.0f);
  const std::vector<RowStretch> stretches = {
      {3700, 0, 300}, {1, 300, 1}, {7, 301, 0}, {2, 301, 3690}, {4002, 3999, 1}};
  ops->copy_rows(view(dst, {rows + 3, W}), view(src, {rows, W}), stretches);
  std::vector<std::int64_t> from(static_cast<std::size_t>(rows + 3), -1);
  for (const RowStretch& s : stretches)
    for (std::int64_t i = 0; i < s.num_rows; ++i)
      from[static_cast<std::size_t>(s.to + i)] = s.from + i;
  std::int64_t wrong = 0;
  for (std::int64_t r = 0; r < rows + 3; ++r)
    for (std::int64_t j = 0; j < W; ++j) {
      const std::int64_t source = from[static_cast<std::size_t>(r)];
      wrong += at(dst, r * W + j) != (source < 0 ? -1.0f : at(src, source * W + j));
    }
  CHECK(wrong == 0);
}

TEST_CASE("stretches beyond a tensor are refused") {
  const auto ops = make_cpu_ops();
  std::vector<float> src = numbered(8), dst(8);
  for (const RowStretch stretch :
       {RowStretch{3, 0, 2}, RowStretch{0, 3, 2}, RowStretch{-1, 0, 1}, RowStretch{0, 0, -1}}) {
    const std::string message = message_of<std::logic_error>([&] {
      ops->copy_rows(view(dst, {4, 2}), view(src, {4, 2}), std::span(&stretch, 1));
    });
    CHECK(message.find("copy_rows") != std::string::npos);
  }
}

TEST_CASE("leading axes are swapped, of either type") {
  const auto ops = make_cpu_ops();
  const std::int64_t A = 37, B = 3, W = 129;
  std::vector<float> src = numbered(A * B * W), dst(src.size());
  ops->swap_leading_axes(view(dst, {B, A, W}), view(src, {A, B, W}));
  std::int64_t wrong = 0;
  for (std::int64_t a = 0; a < A; ++a)
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t w = 0; w < W; ++w)
        wrong += at(dst, (b * A + a) * W + w) != at(src, (a * B + b) * W + w);
  CHECK(wrong == 0);
  std::vector<BFloat16> narrow(6), swapped(6);
  for (std::size_t i = 0; i < 6; ++i) narrow[i].bits = static_cast<std::uint16_t>(i);
  ops->swap_leading_axes(host_view(swapped.data(), {3, 2, 1}), host_view(narrow.data(), {2, 3, 1}));
  const std::uint16_t expected[] = {0, 3, 1, 4, 2, 5};
  for (std::size_t i = 0; i < 6; ++i) CHECK(swapped[i].bits == expected[i]);
}

TEST_CASE("pieces are added in their order") {
  const auto ops = make_cpu_ops();
  const std::int64_t P = 3, n = 40000;
  std::vector<float> pieces(static_cast<std::size_t>(P * n)), sum(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {  // (big + small) - big is not small in another order
    pieces[static_cast<std::size_t>(i)] = 1e8f;
    pieces[static_cast<std::size_t>(n + i)] = static_cast<float>(i % 7);
    pieces[static_cast<std::size_t>(2 * n + i)] = -1e8f;
  }
  ops->sum_pieces(view(sum, {n}), view(pieces, {P, n}));
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < n; ++i)
    wrong += at(sum, i) != (1e8f + static_cast<float>(i % 7)) + -1e8f;
  CHECK(wrong == 0);
}

}  // namespace openmoe::test
