#include <algorithm>
#include <cstring>

#include "core/cpu/cpu_ops.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"
#include "core/cpu/storage.h"

namespace openmoe {
namespace {

// Partial sums of dw that the backward keeps, at most; each covers at least kMinRows rows.
constexpr std::int64_t kMaxPartials = 64;
constexpr std::int64_t kMinRows = 16;

}  // namespace

// A padded row gets y = 0 and rstd = 0.
void CpuOps::do_rms_norm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, Tensor segment_ids,
                                 float eps) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const std::int64_t N = x.size(0), D = x.size(1);
  const std::int32_t* const segment = segment_ids.as<std::int32_t>();
  const float* const in = x.as<float>();
  const float* const weight = w.as<float>();
  float* const inverse = rstd.as<float>();
  cpu::with_storage(y.dtype, [&](auto zero) {
    using S = decltype(zero);
    S* const out = y.as<S>();
    cpu::for_chunks(N, cpu::chunk_rows(D), [&](std::int64_t begin, std::int64_t end, std::int64_t) {
      for (std::int64_t n = begin; n < end; ++n) {
        if (segment[n] > 0) {
          inverse[n] = kernels.stored_as<S>().rms_norm(out + n * D, in + n * D, weight, eps, D);
        } else {
          std::fill_n(out + n * D, D, S{});
          inverse[n] = 0.0f;
        }
      }
    });
  });
}

// y = x^ w with x^ = x rstd and d rstd / dx = -rstd^3 x / D, hence dx = rstd (dy w - x^ mean(dy w
// x^)) and dw = sum of dy x^.
void CpuOps::do_rms_norm_backward_accumulate(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w,
                                             Tensor segment_ids, Tensor rstd) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const std::int64_t N = x.size(0), D = x.size(1);
  const std::int32_t* const segment = segment_ids.as<std::int32_t>();
  const float* const in = x.as<float>();
  const float* const weight = w.as<float>();
  const float* const grad = dy.as<float>();
  const float* const inverse = rstd.as<float>();
  float* const out = dx.as<float>();
  float* const dweight = dw.as<float>();
  const std::int64_t rows = std::max(kMinRows, cpu::num_chunks(N, kMaxPartials));
  const std::int64_t count = cpu::num_chunks(N, rows);
  float* const partials = scratch_.get<float>(count * D);
  cpu::for_chunks(N, rows, [&](std::int64_t begin, std::int64_t end, std::int64_t index) {
    float* const partial = partials + index * D;
    std::memset(partial, 0, static_cast<std::size_t>(D) * sizeof(float));
    for (std::int64_t n = begin; n < end; ++n)
      if (segment[n] > 0)
        kernels.rms_norm_backward(out + n * D, partial, grad + n * D, in + n * D, weight,
                                  inverse[n], D);
  });
  for (std::int64_t index = 0; index < count; ++index)
    kernels.add(dweight, partials + index * D, D);
}

}  // namespace openmoe
