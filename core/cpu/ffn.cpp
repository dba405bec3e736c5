#include "core/cpu/cpu_ops.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"
#include "core/cpu/storage.h"

namespace openmoe {
namespace {

template <class S>
void activation_forward(S* out, const S* g, const S* u, std::int64_t num_rows, std::int64_t F,
                        FfnKind kind) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa()).stored_as<S>();
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

template <class S>
void activation_backward(S* dg, S* du, const S* grad, const S* g, const S* u, std::int64_t num_rows,
                         std::int64_t F, FfnKind kind) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa()).stored_as<S>();
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

}  // namespace

void CpuOps::do_ffn_activation_forward(Tensor h, Tensor gate, Tensor up, FfnKind kind,
                                       std::int64_t num_rows) {
  cpu::with_storage(h.dtype, [&](auto zero) {
    using S = decltype(zero);
    activation_forward<S>(h.as<S>(), gate.as<S>(), up.as<S>(), num_rows, h.size(1), kind);
  });
}

void CpuOps::do_ffn_activation_backward(Tensor dgate, Tensor dup, Tensor dh, Tensor gate, Tensor up,
                                        FfnKind kind, std::int64_t num_rows) {
  cpu::with_storage(dh.dtype, [&](auto zero) {
    using S = decltype(zero);
    activation_backward<S>(dgate.as<S>(), dup.as<S>(), dh.as<S>(), gate.as<S>(), up.as<S>(),
                           num_rows, dh.size(1), kind);
  });
}

}  // namespace openmoe
