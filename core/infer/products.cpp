#include "core/infer/products.h"

#include <algorithm>
#include <vector>

#include "core/infer/dot_kernels.h"

namespace openmoe::infer {
namespace {

constexpr std::int64_t kUnitBytes = 64 << 10;  // of weights that one thread takes at once
constexpr std::int64_t kUnitRows =
    96;  // of x beside them, which should stay in the second-level cache

constexpr std::int64_t kLeastWork = 1 << 16;

std::int64_t panels_per_unit(const PackedMatrix& w) {
  return std::max<std::int64_t>(1, kUnitBytes / std::max<std::int64_t>(1, w.panel_bytes()));
}
std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

void run_unit(const Product& p, std::int64_t row_block, std::int64_t panel_block) {
  const PackedMatrix& w = *p.w;
  const std::int64_t first_panel = panel_block * panels_per_unit(w);
  const std::int64_t first_out = first_panel * kPanelRows;
  const std::int64_t row = row_block * kUnitRows;
  const PanelProduct unit{.y = p.y + row * p.y_ld + first_out,
                          .y_ld = p.y_ld,
                          .x = p.x + row * p.x_ld,
                          .x_ld = p.x_ld,
                          .rows = std::min(kUnitRows, p.rows - row),
                          .panels = w.panel(first_panel),
                          .num_out = std::min(panels_per_unit(w) * kPanelRows, w.out() - first_out),
                          .in = w.in()};
  const DotKernels& kernels = dot_kernels();
  (w.dtype() == DType::bf16 ? kernels.products_bf16 : kernels.products_f32)(unit);
}

}  // namespace

void multiply(std::span<const Product> products) {
  // Unit u belongs to the product whose range [first[i], first[i + 1]) holds it.
  std::vector<std::int64_t> first{0};
  first.reserve(products.size() + 1);
  for (const Product& p : products)
    first.push_back(first.back() + ceil_div(p.rows, kUnitRows) *
                                       ceil_div(p.w->num_panels(), panels_per_unit(*p.w)));
  std::int64_t work = 0;  // multiplications; few of them are not worth waking threads
  for (const Product& p : products) work += p.rows * p.w->out() * p.w->in();
#pragma omp parallel for schedule(dynamic) if (first.back() > 1 && work > kLeastWork)
  for (std::int64_t unit = 0; unit < first.back(); ++unit) {
    const auto index = static_cast<std::size_t>(std::upper_bound(first.begin(), first.end(), unit) -
                                                first.begin() - 1);
    const Product& p = products[index];
    const std::int64_t row_blocks = ceil_div(p.rows, kUnitRows), local = unit - first[index];
    run_unit(p, local % row_blocks, local / row_blocks);
  }
}

}  // namespace openmoe::infer
