// The dense FFN, alone in a dense layer and beside the experts in an MoE layer. Its norm belongs to
// the caller, since the parallel residual FFN shares the MoE sublayer's.
#include "core/model/model.h"

namespace openmoe {

// x_next += Wd act(Wg y, Wu y)
void Model::ffn_forward(const FfnParams& params, FfnActivations& act, Tensor x_next, Tensor y) {
  ops_.linear_forward(act.gate, y, params.gate->value);
  ops_.linear_forward(act.up, y, params.up->value);
  ops_.ffn_activation_forward(act.h, act.gate, act.up, config_.ffn, num_tokens());
  ops_.linear_forward_accumulate(x_next, act.h, params.down->value);
}

// scratch dy = (or +=) the gradient of y, from scratch dx, the gradient of x_next.
void Model::ffn_backward(const FfnParams& params, FfnActivations& act, Tensor y,
                         bool accumulate_dy) {
  Scratch& s = scratch_;
  ops_.linear_backward_input(s.dh, s.dx, params.down->value);
  ops_.linear_backward_weight(params.down->grad, s.dx, act.h);
  ops_.ffn_activation_backward(act.gate, act.up, s.dh, act.gate, act.up, config_.ffn, num_tokens());
  ops_.linear_backward_weight(params.gate->grad, act.gate, y);
  ops_.linear_backward_weight(params.up->grad, act.up, y);
  if (accumulate_dy)
    ops_.linear_backward_input_accumulate(s.dy, act.gate, params.gate->value);
  else
    ops_.linear_backward_input(s.dy, act.gate, params.gate->value);
  ops_.linear_backward_input_accumulate(s.dy, act.up, params.up->value);
}

}  // namespace openmoe
