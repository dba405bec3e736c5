// The mixture-of-experts sublayer: x' = x + sum over kept choices k of gate_k * expert_k(y), y =
// rms_norm(x). Router in f32; rows travel to their experts and back through TokenExchange
// (one handle per layer; the backward of dispatch is combine and the reverse).
#include <algorithm>

#include "core/model/model.h"

namespace openmoe {

bool Model::is_local() const {
  return !exchange_.moves_rows();
}

RouterOptions Model::router_options(bool training) const {
  return {.group_tokens = routing_.group_tokens,
          .capacity = routing_.capacity(config_.num_experts, training),
          .normalize_gates = routing_.normalize_gates};
}

// Where the own rows of scratch y go.
void Model::route(const MoeParams& params, MoeActivations& act, bool training) {
  const Scratch& s = scratch_;
  ops_.enter("experts");
  ops_.linear_forward(own(s.router_logits), router_input(), params.router->value);
  tensor_.gather_rows(s.router_logits);
  if (router_override_) router_override_(s.router_logits);
  ops_.router_forward(act.router, s.router_logits, batch_.routed, router_options(training));
  exchange_.plan(act.routing, act.router.choice, act.router.slot);
}

// The own rows of scratch y on their way to their experts. Where all experts are here, rows are
// written at once where they are wanted and the exchange moves nothing.
void Model::dispatch_rows(MoeActivations& act) {
  Scratch& s = scratch_;
  ops_.enter("experts");
  const Tensor sent = is_local() ? s.received : s.sent;
  ops_.gather_rows(sent, columns_of(s.y_columns, own(s.y)), act.routing.row_token,
                   act.routing.num_sent);
  start_exchange(sent, received(act), act.routing);
}

// Experts' outputs of what was dispatched, in `returned`.
void Model::compute_experts(const MoeParams& params, MoeActivations& act) {
  ops_.enter("experts");
  const Tensor sent = is_local() ? scratch_.received : scratch_.sent;
  const Tensor expert_out = is_local() ? act.returned : scratch_.exchanged;
  compute_parts(sent, received(act), expert_out, act.returned, act.routing,
                [&](std::int64_t begin, std::int64_t end) {
                  experts_forward(params, act, expert_out, begin, end);
                });
}

// x += combine(returned, gate)
void Model::add_experts(const MoeActivations& act, Tensor x) {
  const Scratch& s = scratch_;
  if (!is_alone()) ops_.zero(s.sum_columns);
  ops_.combine_rows_forward_accumulate(is_alone() ? x : s.sum_columns, act.returned,
                                       act.router.gate, act.routing.assignment_row);
  if (is_alone()) return;
  tensor_.columns_to_rows(own(s.dy), s.sum_columns);
  ops_.add_accumulate(x, own(s.dy));
}

void Model::start_exchange(Tensor sent, Tensor received, const Routing& routing) {
  if (is_local()) return;
  for (std::int64_t p = 0; p < exchange_.num_parts(); ++p)
    exchange_.start_dispatch(sent, received, routing, p);
}

// While one part of the experts is computed, others are on their way to or from their rank.
template <typename Work>
void Model::compute_parts(Tensor sent, Tensor received, Tensor computed, Tensor returned,
                          const Routing& routing, Work&& work) {
  if (is_local()) return work(0, exchange_.num_local_experts());
  const std::int64_t parts = exchange_.num_parts();
  for (std::int64_t p = 0; p < parts; ++p) {
    exchange_.finish_dispatch(sent, received, p);
    work(exchange_.part_begin(p), exchange_.part_begin(p + 1));
    exchange_.start_combine(computed, returned, routing, p);
  }
  for (std::int64_t p = 0; p < parts; ++p) exchange_.finish_combine(returned, p);
}

// Scratch that only a chunk needs does not grow with the number of experts; gate and up are kept
// for all rows unless they are computed again.
template <typename Work>
void Model::for_expert_chunks(MoeActivations& act, std::int64_t first, std::int64_t last,
                              Work&& work) {
  const std::int64_t* const offsets = act.routing.expert_offsets.data();
  for (std::int64_t begin = first; begin < last; begin += expert_chunk_) {
    ExpertChunk chunk;
    chunk.begin = begin;
    chunk.end = std::min(last, begin + expert_chunk_);
    chunk.row_begin = offsets[begin];
    chunk.row_end = offsets[chunk.end];
    for (std::int64_t e = begin; e <= chunk.end; ++e)
      chunk_offsets_[static_cast<std::size_t>(e - begin)] = offsets[e] - chunk.row_begin;
    chunk.offsets = host_view(chunk_offsets_.data(), {chunk.end - begin + 1});
    const std::int64_t kept = recompute_ffn_ ? 0 : chunk.row_begin;
    chunk.gate = act.expert_gate.rows(kept, kept + chunk.num_rows());
    chunk.up = act.expert_up.rows(kept, kept + chunk.num_rows());
    chunk.h = scratch_.expert_h.rows(0, chunk.num_rows());
    chunk.sum = is_alone() ? Tensor{} : scratch_.expert_sum.rows(0, chunk.num_rows());
    work(chunk);
  }
}

void Model::complete(const Param& stack, const ExpertChunk& chunk) {
  if (!gradient_observer_) return;
  Param part = stack.slice(chunk.begin, chunk.end);
  gradient_observer_(part);
}

Tensor Model::whole_rows(Tensor room, const ExpertChunk& chunk, Tensor columns) {
  const Tensor own_columns = chunk.of_rows(columns);
  if (is_alone()) return own_columns;
  const Tensor whole = room.rows(0, chunk.num_rows());
  tensor_.gather_columns(whole, own_columns);
  return whole;
}

// gate = received Wg, up = received Wu, by expert
void Model::expert_inputs(const MoeParams& params, const ExpertChunk& chunk, Tensor rows) {
  ops_.grouped_matmul_forward(chunk.gate, rows, chunk.of_stack(params.gate->operand),
                              chunk.offsets);
  exchange_.advance();
  ops_.grouped_matmul_forward(chunk.up, rows, chunk.of_stack(params.up->operand), chunk.offsets);
  exchange_.advance();
}

// out = Wo act(received Wg, received Wu), by expert, of local experts [first, last)
void Model::experts_forward(const MoeParams& params, MoeActivations& act, Tensor out,
                            std::int64_t first, std::int64_t last) {
  for_expert_chunks(act, first, last, [&](const ExpertChunk& chunk) {
    expert_inputs(params, chunk, whole_rows(scratch_.expert_x, chunk, received(act)));
    ops_.ffn_activation_forward(chunk.h, chunk.gate, chunk.up, config_.ffn, chunk.num_rows());
    ops_.grouped_matmul_forward(is_alone() ? chunk.of_rows(out) : chunk.sum, chunk.h,
                                chunk.of_stack(params.down->operand), chunk.offsets);
    if (!is_alone()) tensor_.sum_columns(chunk.of_rows(out), chunk.sum);
  });
}

// Own rows of scratch dy = the gradient of y, own rows of which scratch y holds, from scratch dx,
// the gradient of x_next; 0 in the rows of other ranks.
void Model::moe_backward(const MoeParams& params, MoeActivations& act, const BatchCounts& counts) {
  Scratch& s = scratch_;
  ops_.enter("experts");
  // x' = x + combine(returned, gate)
  const Tensor d_returned = is_local() ? s.exchanged : s.sent;
  ops_.combine_rows_backward(d_returned, s.dgate, columns_of(s.sum_columns, s.dx), act.returned,
                             act.router.gate, act.routing.assignment_row);
  tensor_.sum(s.dgate);
  start_exchange(d_returned, s.exchanged, act.routing);
  if (is_local())
    ops_.gather_rows(s.received, columns_of(s.y_columns, own(s.y)), act.routing.row_token,
                     act.routing.num_sent);
  // A part's gradients return to the rows of `sent` that it was sent from.
  compute_parts(
      d_returned, s.exchanged, s.exchanged, s.sent, act.routing,
      [&](std::int64_t begin, std::int64_t end) { experts_backward(params, act, begin, end); });
  const Tensor d_sent = is_local() ? s.exchanged : s.sent;

  const double layers = static_cast<double>(config_.num_moe_layers());
  const RouterLossScale scale{.balance = static_cast<float>(loss_.load_balance_weight / layers /
                                                            std::max(1.0, counts.routed_groups)),
                              .z = static_cast<float>(loss_.router_z_weight / layers /
                                                      std::max(1.0, counts.routed_tokens))};
  ops_.router_backward(s.router_logits, s.dgate, batch_.routed, act.router, scale,
                       router_options(true));
  const Tensor d_logits = own(s.router_logits), dy = own(s.dy);
  ops_.linear_backward_weight(params.router->grad, d_logits, router_input());
  if (is_alone()) {
    ops_.linear_backward_input(dy, d_logits, params.router->value);
    complete(*params.router);
    ops_.gather_rows_backward_accumulate(dy, d_sent, act.routing.assignment_row);
    return;
  }
  ops_.zero(s.sum_columns);
  ops_.gather_rows_backward_accumulate(s.sum_columns, d_sent, act.routing.assignment_row);
  ops_.zero(s.dy);
  tensor_.columns_to_rows(dy, s.sum_columns);
  ops_.linear_backward_input_accumulate(dy, d_logits, params.router->value);
  complete(*params.router);
}

// exchanged: in, the gradient of the experts' outputs; out, that of their inputs; of local experts
// [first, last).
void Model::experts_backward(const MoeParams& params, MoeActivations& act, std::int64_t first,
                             std::int64_t last) {
  for_expert_chunks(act, first, last, [&](const ExpertChunk& chunk) {
    const Tensor gate = chunk.gate, up = chunk.up, h = chunk.h, offsets = chunk.offsets;
    const Tensor rows = whole_rows(scratch_.expert_x, chunk, received(act));
    const Tensor d = whole_rows(scratch_.expert_d, chunk, scratch_.exchanged);
    const Tensor d_rows = is_alone() ? d : chunk.sum;
    const auto weight = [&](const Param* param) { return chunk.of_stack(param->operand); };
    const auto grad = [&](const Param* param) { return chunk.of_stack(param->grad); };
    if (recompute_ffn_) expert_inputs(params, chunk, rows);
    // As in ffn_backward: h again, then its gradient in the same place.
    ops_.ffn_activation_forward(h, gate, up, config_.ffn, chunk.num_rows());
    ops_.grouped_matmul_backward_weight(grad(params.down), d, h, offsets);
    ops_.grouped_matmul_backward_input(h, d, weight(params.down), offsets);
    exchange_.advance();
    complete(*params.down, chunk);
    ops_.ffn_activation_backward(gate, up, h, gate, up, config_.ffn, chunk.num_rows());
    ops_.grouped_matmul_backward_input(d_rows, gate, weight(params.gate), offsets);
    ops_.grouped_matmul_backward_weight(grad(params.gate), gate, rows, offsets);
    complete(*params.gate, chunk);
    exchange_.advance();
    ops_.grouped_matmul_backward_input_accumulate(d_rows, up, weight(params.up), offsets);
    ops_.grouped_matmul_backward_weight(grad(params.up), up, rows, offsets);
    complete(*params.up, chunk);
    if (!is_alone()) tensor_.sum_columns(chunk.of_rows(scratch_.exchanged), d_rows);
  });
}

// In bf16 the router's product is made in f32, of the rounded y and the weight unrounded: the
// choice of experts is the one place where rounding changes what is computed, not only how exactly
// (Fedus et al. 2022, section 2.4, "selective precision").
Tensor Model::router_input() {
  if (compute_ == DType::f32) return own(scratch_.y);
  ops_.convert(scratch_.router_y, own(scratch_.y));
  return scratch_.router_y;
}

// Adds what the router of this micro-batch decided to the layer's sums.
void Model::collect(const MoeActivations& act, MoeLayerSums& sums) {
  const std::int64_t N = num_tokens(), E = config_.num_experts, groups = N / routing_.group_tokens;
  std::vector<float>&picks = host_picks_, &prob = host_prob_, &routed = host_routed_, &z = host_z_;
  std::vector<std::int32_t>&slot = host_slot_, &wanted = host_wanted_;
  ops_.copy(host_view(picks.data(), {groups, E}), act.router.group_picks);
  ops_.copy(host_view(prob.data(), {groups, E}), act.router.group_prob);
  ops_.copy(host_view(routed.data(), {groups}), act.router.group_routed);
  ops_.copy(host_view(z.data(), {groups}), act.router.group_z);
  ops_.copy(host_view(slot.data(), {N, 2}), act.router.slot);
  ops_.copy(host_view(wanted.data(), {N}), batch_.routed);

  for (std::int64_t g = 0; g < groups; ++g) {
    const auto group = static_cast<std::size_t>(g);
    const double count = static_cast<double>(routed[group]);
    sums.z += static_cast<double>(z[group]);
    double overlap = 0.0;  // sum_e picks_e * prob_e
    for (std::int64_t e = 0; e < E; ++e) {
      const auto at = static_cast<std::size_t>(g * E + e);
      sums.chosen[static_cast<std::size_t>(e)] += static_cast<double>(picks[at]);
      overlap += static_cast<double>(picks[at]) * static_cast<double>(prob[at]);
    }
    if (count > 0.0) sums.balance += static_cast<double>(E) * overlap / (count * count);
  }
  for (std::size_t n = 0; n < wanted.size(); ++n) {
    if (wanted[n] == 0) continue;
    sums.dropped_first += slot[2 * n] < 0 ? 1.0 : 0.0;
    sums.dropped_second += slot[2 * n + 1] < 0 ? 1.0 : 0.0;
  }
  for (std::size_t e = 0; e < sums.kept.size(); ++e)
    sums.kept[e] += static_cast<double>(act.routing.sent_per_expert[e]);
}

}  // namespace openmoe
