// The attention sublayer: x' = x + attention(rms_norm(x)).
#include "core/model/model.h"

namespace openmoe {
// q, k, v and o from scratch y. Rows may be on their way to experts meanwhile.
void Model::attention_output(const AttentionParams& params, AttentionActivations& act) {
  const Shape by_head{rows_, length_, share_.num_heads, config_.head_dim};
  const auto base = static_cast<float>(config_.rope_base);
  const Tensor y = scratch_.y;
  ops_.linear_forward(act.q, y, params.q->operand);
  exchange_.advance();
  ops_.linear_forward(act.k, y, params.k->operand);
  exchange_.advance();
  ops_.linear_forward(act.v, y, params.v->operand);
  exchange_.advance();
  ops_.rope_forward(act.q.reshaped(by_head), act.k.reshaped(by_head), base);
  ops_.attention_forward(act.o.reshaped(by_head), act.log_z, act.q.reshaped(by_head),
                         act.k.reshaped(by_head), act.v.reshaped(by_head),
                         batch_.segment_ids.reshaped({rows_, length_}), config_.logit_scale());
  exchange_.advance();
}

// x_next = x + Wo attention(y), y in scratch
void Model::attention_forward(const AttentionParams& params, AttentionActivations& act,
                              Tensor x_next, Tensor x) {
  ops_.enter("attention");
  attention_output(params, act);
  ops_.copy(x_next, x);
  project_accumulate(x_next, act.o, *params.o);
}

// Scratch dy = (or +=) the gradient of scratch y, to be added up over ranks, from dx (N, D) c, the
// gradient of x_next.
void Model::attention_backward(const AttentionParams& params, AttentionActivations& act, Tensor dx,
                               bool accumulate_dy) {
  const Shape by_head{rows_, length_, share_.num_heads, config_.head_dim};
  const auto base = static_cast<float>(config_.rope_base);
  const auto heads = [&](Tensor t) { return t.reshaped(by_head); };
  Scratch& s = scratch_;
  ops_.enter("attention");
  if (recompute_ == Recompute::attention) attention_output(params, act);
  // x' = x + o Wo^T
  ops_.linear_backward_input(s.d_o, dx, params.o->operand);
  ops_.linear_backward_weight(params.o->grad, dx, act.o);
  complete(*params.o);
  ops_.attention_backward(
      heads(s.dq), heads(s.dk), heads(s.dv), heads(s.d_o), heads(act.q), heads(act.k), heads(act.v),
      heads(act.o), batch_.segment_ids.reshaped({rows_, length_}), act.log_z, config_.logit_scale());
  ops_.rope_backward(heads(s.dq), heads(s.dk), base);
  // q = y Wq^T, k = y Wk^T, v = y Wv^T
  if (accumulate_dy)
    ops_.linear_backward_input_accumulate(s.dy, s.dq, params.q->operand);
  else
    ops_.linear_backward_input(s.dy, s.dq, params.q->operand);
  ops_.linear_backward_weight(params.q->grad, s.dq, s.y);
  complete(*params.q);
  ops_.linear_backward_input_accumulate(s.dy, s.dk, params.k->operand);
  ops_.linear_backward_weight(params.k->grad, s.dk, s.y);
  complete(*params.k);
  ops_.linear_backward_input_accumulate(s.dy, s.dv, params.v->operand);
  ops_.linear_backward_weight(params.v->grad, s.dv, s.y);
  complete(*params.v);
}

}  // namespace openmoe
