// Attention of CpuOps: the arguments of attention.h.
#include "core/cpu/attention.h"
#include "core/cpu/cpu_ops.h"

namespace openmoe {

void CpuOps::do_attention_forward(Tensor o, Tensor log_z, Tensor q, Tensor k, Tensor v,
                                  Tensor segment_ids, float scale) {
  cpu::attention_forward(o.as<float>(), log_z.as<float>(), q.as<float>(), k.as<float>(),
                         v.as<float>(), segment_ids.as<std::int32_t>(), q.size(0), q.size(1),
                         q.size(2), q.size(3), scale);
}

void CpuOps::do_attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor d_o, Tensor q, Tensor k,
                                   Tensor v, Tensor o, Tensor segment_ids, Tensor log_z,
                                   float scale) {
  cpu::attention_backward(dq.as<float>(), dk.as<float>(), dv.as<float>(), d_o.as<float>(),
                          q.as<float>(), k.as<float>(), v.as<float>(), o.as<float>(),
                          segment_ids.as<std::int32_t>(), log_z.as<float>(), q.size(0), q.size(1),
                          q.size(2), q.size(3), scale);
}

}  // namespace openmoe
