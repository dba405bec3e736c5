#include "core/cpu/cpu_ops.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"

namespace openmoe {

void CpuOps::do_ffn_activation_forward(Tensor h, Tensor gate, Tensor up, FfnKind kind,
                                       std::int64_t num_rows) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const std::int64_t F = h.size(1);
  float* const out = h.as<float>();
  const float* const g = gate.as<float>();
  const float* const u = up.as<float>();
  if (kind == FfnKind::swiglu) {
    cpu::for_chunks(num_rows * F, cpu::kChunkElements,
                    [&](std::int64_t begin, std::int64_t end, std::int64_t) {
                      kernels.swiglu(out + begin, g + begin, u + begin, end - begin);
                    });
    return;
  }
  cpu::for_chunks(
      num_rows, cpu::chunk_rows(F), [&](std::int64_t begin, std::int64_t end, std::int64_t) {
        for (std::int64_t n = begin; n < end; ++n)
          kernels.gated_swiglu(out + n * F, g + n * 2 * F, g + n * 2 * F + F, u + n * F, F);
      });
}

void CpuOps::do_ffn_activation_backward(Tensor dgate, Tensor dup, Tensor dh, Tensor gate, Tensor up,
                                        FfnKind kind, std::int64_t num_rows) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const std::int64_t F = dh.size(1);
  float* const dg = dgate.as<float>();
  float* const du = dup.as<float>();
  const float* const grad = dh.as<float>();
  const float* const g = gate.as<float>();
  const float* const u = up.as<float>();
  if (kind == FfnKind::swiglu) {
    cpu::for_chunks(num_rows * F, cpu::kChunkElements,
                    [&](std::int64_t begin, std::int64_t end, std::int64_t) {
                      kernels.swiglu_backward(dg + begin, du + begin, grad + begin, g + begin,
                                              u + begin, end - begin);
                    });
    return;
  }
  cpu::for_chunks(num_rows, cpu::chunk_rows(F),
                  [&](std::int64_t begin, std::int64_t end, std::int64_t) {
                    for (std::int64_t n = begin; n < end; ++n) {
                      const std::int64_t a = n * 2 * F, b = a + F;
                      kernels.gated_swiglu_backward(dg + a, dg + b, du + n * F, grad + n * F, g + a,
                                                    g + b, u + n * F, F);
                    }
                  });
}

}  // namespace openmoe
