// The dense FFN, alone in a dense layer and beside the experts in an MoE layer. Its norm belongs to
// the caller, since the parallel residual FFN shares the MoE sublayer's; its input is scratch y.
#include "core/model/model.h"

namespace openmoe {

// gate = Wg y, up = Wu y
void Model::ffn_inputs(const FfnParams& params, FfnActivations& act) {
  ops_.linear_forward(act.gate, scratch_.y, params.gate->operand);
  ops_.linear_forward(act.up, scratch_.y, params.up->operand);
}

// x_next += Wd act(Wg y, Wu y)
void Model::ffn_forward(const FfnParams& params, FfnActivations& act, Tensor x_next) {
  const Scratch& s = scratch_;
  ops_.enter("ffn");
  ffn_inputs(params, act);
  ops_.ffn_activation_forward(s.h, act.gate, act.up, config_.ffn, num_tokens());
  project_accumulate(x_next, s.h, *params.down);
}

// As attention_backward. What is added to must be 0 in the rows of other ranks, or of this rank's
// share alone.
void Model::ffn_backward(const FfnParams& params, FfnActivations& act, Tensor dx,
                         bool accumulate_dy) {
  const Scratch& s = scratch_;
  ops_.enter("ffn");
  if (recompute_ffn_) ffn_inputs(params, act);
  // h was not kept; once its weight's gradient is done, its place takes the gradient of h.
  ops_.ffn_activation_forward(s.h, act.gate, act.up, config_.ffn, num_tokens());
  ops_.linear_backward_weight(params.down->grad, dx, s.h);
  ops_.linear_backward_input(s.h, dx, params.down->operand);
  complete(*params.down);
  ops_.ffn_activation_backward(act.gate, act.up, s.h, act.gate, act.up, config_.ffn, num_tokens());
  if (accumulate_dy)
    ops_.linear_backward_input_accumulate(s.dy, act.gate, params.gate->operand);
  else
    ops_.linear_backward_input(s.dy, act.gate, params.gate->operand);
  ops_.linear_backward_weight(params.gate->grad, act.gate, s.y);
  complete(*params.gate);
  ops_.linear_backward_input_accumulate(s.dy, act.up, params.up->operand);
  ops_.linear_backward_weight(params.up->grad, act.up, s.y);
  complete(*params.up);
}

}  // namespace openmoe
