// The output head and the loss, a chunk of tokens at a time: the logits of a whole batch never
// exist (a 256K vocabulary would need gigabytes). In training the gradients of the head's input and
// weight come out of the same pass.
#include <algorithm>

#include "core/model/model.h"

namespace openmoe {

// The gradient of `num_rows` logits as products read it. Rounded row r ends below exact row
// (r + 1) / 2, so that rows [n, 2n) can follow when all before them are done.
Tensor Model::dlogits(std::int64_t num_rows) {
  const Tensor exact = scratch_.logits.rows(0, num_rows);
  if (compute_ == DType::f32) return exact;
  const Tensor rounded = scratch_.logits_operand.rows(0, num_rows);
  for (std::int64_t begin = 0, end = 1; begin < num_rows; begin = end, end *= 2) {
    end = std::min(end, num_rows);
    ops_.convert(rounded.rows(begin, end), exact.rows(begin, end));
  }
  return rounded;
}

void Model::head(float gradient_scale, StepSums& sums, Tensor token_loss) {
  const bool training = gradient_scale > 0.0f;
  Param &weight = *head_, &norm = *final_norm_;
  ops_.enter("head");
  gather_normalized(norm, final_rstd_, x_final_);
  for (std::int64_t begin = 0; begin < num_tokens(); begin += loss_chunk_rows_) {
    const std::int64_t end = std::min(num_tokens(), begin + loss_chunk_rows_);
    const Tensor logits = scratch_.logits.rows(0, end - begin);
    const Tensor y = scratch_.y.rows(begin, end);
    ops_.linear_forward(logits, y, weight.operand);
    if (logits_observer_) logits_observer_(begin, logits);
    const Tensor wanted =
        token_loss ? token_loss.reshaped({num_tokens()}).rows(begin, end) : Tensor{};
    const bool is_elsewhere = wanted && ops_.device() != wanted.device;
    const Tensor losses = is_elsewhere ? scratch_.token_loss.rows(0, end - begin) : wanted;
    const LossSums chunk = ops_.softmax_cross_entropy(
        logits, batch_.targets.rows(begin, end), batch_.loss_weights.rows(begin, end), losses,
        static_cast<float>(loss_.logits_z_weight), gradient_scale,
        is_alone() ? nullptr : &vocabulary_);
    if (is_elsewhere) ops_.copy(wanted, losses);
    sums.cross_entropy += chunk.cross_entropy;
    sums.log_z_square += chunk.log_z_square;
    sums.correct += chunk.correct;
    if (!training) continue;
    const Tensor gradient = dlogits(end - begin);
    ops_.linear_backward_weight(weight.grad, gradient, y);
    ops_.linear_backward_input(scratch_.dy.rows(begin, end), gradient, weight.operand);
  }
  if (!training) return;
  if (head_ != embedding_) complete(weight);
  ops_.zero(scratch_.dx);
  tensor_.sum_rows(scratch_.dy);
  norm_backward(norm, x_final_, final_rstd_);
}

}  // namespace openmoe
