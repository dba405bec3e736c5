#include <cmath>

#include "core/cpu/cpu_ops.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"
#include "core/cpu/storage.h"

namespace openmoe {

// Keeps the longest table so far of one (half, base): a model has only one of these, and shorter
// rows read its beginning.
void CpuOps::prepare_rope_table(std::int64_t length, std::int64_t half, float base) {
  RopeTable& table = rope_table_;
  if (table.half == half && table.base == base && table.length >= length) return;
  table.length = length;
  table.half = half;
  table.base = base;
  const auto size = static_cast<std::size_t>(length * half);
  table.cos.resize(size);
  table.sin.resize(size);
  table.minus_sin.resize(size);
  for (std::int64_t j = 0; j < half; ++j) {
    const double frequency =
        std::pow(static_cast<double>(base), -static_cast<double>(j) / static_cast<double>(half));
    for (std::int64_t t = 0; t < length; ++t) {
      const double angle = static_cast<double>(t) * frequency;
      const auto at = static_cast<std::size_t>(t * half + j);
      table.cos[at] = static_cast<float>(std::cos(angle));
      table.sin[at] = static_cast<float>(std::sin(angle));
      table.minus_sin[at] = -table.sin[at];
    }
  }
}

void CpuOps::do_rope(Tensor x, float base, bool inverse) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const std::int64_t B = x.size(0), T = x.size(1), H = x.size(2), Dh = x.size(3), half = Dh / 2;
  prepare_rope_table(T, half, base);
  const float* const cos = rope_table_.cos.data();
  const float* const sin = inverse ? rope_table_.minus_sin.data() : rope_table_.sin.data();
  cpu::with_storage(x.dtype, [&](auto zero) {
    using S = decltype(zero);
    S* const data = x.as<S>();
    cpu::for_chunks(
        B * T, cpu::chunk_rows(H * Dh), [&](std::int64_t begin, std::int64_t end, std::int64_t) {
          for (std::int64_t n = begin; n < end; ++n) {
            const std::int64_t angles = n % T * half;
            for (std::int64_t h = 0; h < H; ++h) {
              S* const head = data + (n * H + h) * Dh;
              kernels.stored_as<S>().rotate(head, head + half, cos + angles, sin + angles, half);
            }
          }
        });
  });
}

}  // namespace openmoe
