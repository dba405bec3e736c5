// Attention of CpuOps: the arguments of attention.h.
#include "core/cpu/attention.h"
#include "core/cpu/cpu_ops.h"
#include "core/cpu/storage.h"

namespace openmoe {

void CpuOps::do_attention_forward(Tensor o, Tensor log_z, Tensor q, Tensor k, Tensor v,
                                  Tensor segment_ids, float scale) {
  cpu::with_storage(q.dtype, [&](auto zero) {
    using S = decltype(zero);
    cpu::attention_forward<S>(o.as<S>(), log_z.as<float>(), q.as<S>(), k.as<S>(), v.as<S>(),
                              segment_ids.as<std::int32_t>(), q.size(0), q.size(1), q.size(2),
                              q.size(3), scale);
  });
}

void CpuOps::do_attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor d_o, Tensor q, Tensor k,
                                   Tensor v, Tensor o, Tensor segment_ids, Tensor log_z,
                                   float scale) {
  cpu::with_storage(q.dtype, [&](auto zero) {
    using S = decltype(zero);
    cpu::attention_backward<S>(dq.as<S>(), dk.as<S>(), dv.as<S>(), d_o.as<S>(), q.as<S>(),
                               k.as<S>(), v.as<S>(), o.as<S>(), segment_ids.as<std::int32_t>(),
                               log_z.as<float>(), q.size(0), q.size(1), q.size(2), q.size(3),
                               scale);
  });
}

}  // namespace openmoe
