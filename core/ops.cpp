// The checked public half of Ops: every shape, type and device is compared with the contract of
// ops.h here, once, so that the backends need not. A mismatch is an error of the caller's code and
// ends in OPENMOE_CHECK with the op and the tensor named.
#include "core/ops.h"

#include <string>

namespace openmoe {
namespace {

constexpr std::int64_t kAny = -1;

const char* name_of(Device device) {
  return device == Device::host ? "the host" : "the cuda device";
}

std::string expected_shape(const Shape& shape) {
  std::string text = "(";
  for (int i = 0; i < shape.rank; ++i)
    text += (i ? ", " : "") + (shape[i] == kAny ? "any" : std::to_string(shape[i]));
  return text + ")";
}

bool matches(const Shape& found, const Shape& expected) {
  if (found.rank != expected.rank) return false;
  for (int i = 0; i < found.rank; ++i)
    if (expected[i] != kAny && found[i] != expected[i]) return false;
  return true;
}

// The checks of one call.
class OpCheck {
 public:
  OpCheck(const char* op, Device device) : op_(op), device_(device) {}

  void f32(const char* name, const Tensor& x, const Shape& shape) const {
    tensor(name, x, DType::f32, shape, device_);
  }
  void i32(const char* name, const Tensor& x, const Shape& shape) const {
    tensor(name, x, DType::i32, shape, device_);
  }
  void host_i64(const char* name, const Tensor& x, const Shape& shape) const {
    tensor(name, x, DType::i64, shape, Device::host);
  }
  void tensor(const char* name, const Tensor& x, DType dtype, const Shape& shape,
              Device device) const {
    OPENMOE_CHECK(x.dtype == dtype && matches(x.shape, shape), op_, ": ", name, " is ",
                  openmoe::name_of(x.dtype), " ", x.shape.to_string(), ", expected ",
                  openmoe::name_of(dtype), " ", expected_shape(shape));
    OPENMOE_CHECK(x.device == device, op_, ": ", name, " is on ", name_of(x.device),
                  ", expected on ", name_of(device));
    present(name, x);
  }
  void present(const char* name, const Tensor& x) const {
    OPENMOE_CHECK(x.data != nullptr || x.num_elements() == 0, op_, ": ", name, " ",
                  x.shape.to_string(), " has no memory (from a dry arena?)");
  }
  // A scalar or relation; `what` says what must hold.
  void that(bool condition, const char* what, double found) const {
    OPENMOE_CHECK(condition, op_, ": ", what, ", found ", found);
  }

 private:
  const char* op_;
  Device device_;
};

// x (N, in), y (N, out), w (out, in), named by the caller since they may be gradients.
void check_linear(const OpCheck& check, const char* y_name, Tensor y, const char* x_name, Tensor x,
                  const char* w_name, Tensor w) {
  check.f32(w_name, w, {kAny, kAny});
  check.f32(x_name, x, {kAny, w.size(1)});
  check.f32(y_name, y, {x.size(0), w.size(0)});
}

// x (M_max, in), y (M_max, out), w (El, in, out), expert_offsets (El + 1) rising from 0 or more to
// at most M_max.
void check_grouped(const OpCheck& check, const char* y_name, Tensor y, const char* x_name, Tensor x,
                   const char* w_name, Tensor w, Tensor expert_offsets) {
  check.f32(w_name, w, {kAny, kAny, kAny});
  check.f32(x_name, x, {kAny, w.size(1)});
  check.f32(y_name, y, {x.size(0), w.size(2)});
  check.host_i64("expert_offsets", expert_offsets, {w.size(0) + 1});
  const std::int64_t* offsets = expert_offsets.as<std::int64_t>();
  check.that(offsets[0] >= 0, "expert_offsets must not be negative",
             static_cast<double>(offsets[0]));
  for (std::int64_t g = 0; g < w.size(0); ++g)
    check.that(offsets[g] <= offsets[g + 1], "expert_offsets must not fall",
               static_cast<double>(offsets[g + 1]));
  check.that(offsets[w.size(0)] <= x.size(0), "expert_offsets must end within the rows of x",
             static_cast<double>(offsets[w.size(0)]));
}

void check_attention_inputs(const OpCheck& check, Tensor q, Tensor k, Tensor v,
                            Tensor segment_ids) {
  check.f32("q", q, {kAny, kAny, kAny, kAny});
  check.f32("k", k, q.shape);
  check.f32("v", v, q.shape);
  check.i32("segment_ids", segment_ids, {q.size(0), q.size(1)});
}

void check_ffn(const OpCheck& check, const char* h_name, Tensor h, Tensor gate, Tensor up,
               FfnKind kind, std::int64_t num_rows) {
  check.f32(h_name, h, {kAny, kAny});
  const std::int64_t gate_width = (kind == FfnKind::gated_swiglu ? 2 : 1) * h.size(1);
  check.f32("gate", gate, {h.size(0), gate_width});
  check.f32("up", up, h.shape);
  check.that(0 <= num_rows && num_rows <= h.size(0), "num_rows must be within the rows of h",
             static_cast<double>(num_rows));
}

// The number of tokens and experts come from `logits`, which is (N, E).
void check_router(const OpCheck& check, const char* logits_name, Tensor logits, Tensor routed,
                  const RouterOutput& out, const RouterOptions& options) {
  check.f32(logits_name, logits, {kAny, kAny});
  const std::int64_t num_tokens = logits.size(0), num_experts = logits.size(1),
                     group = options.group_tokens;
  check.that(num_experts >= 2, "top-2 routing needs at least 2 experts",
             static_cast<double>(num_experts));
  check.that(group > 0 && num_tokens % group == 0, "group_tokens must divide the number of tokens",
             static_cast<double>(group));
  check.that(options.capacity > 0, "capacity must be positive",
             static_cast<double>(options.capacity));
  check.i32("routed", routed, {num_tokens});
  check.f32("prob", out.prob, {num_tokens, num_experts});
  check.f32("log_z", out.log_z, {num_tokens});
  check.i32("choice", out.choice, {num_tokens, 2});
  check.f32("gate", out.gate, {num_tokens, 2});
  check.i32("slot", out.slot, {num_tokens, 2});
  check.f32("group_picks", out.group_picks, {num_tokens / group, num_experts});
  check.f32("group_prob", out.group_prob, {num_tokens / group, num_experts});
  check.f32("group_routed", out.group_routed, {num_tokens / group});
  check.f32("group_z", out.group_z, {num_tokens / group});
}

void check_adafactor(const OpCheck& check, const AdafactorScalars& scalars) {
  check.that(scalars.decay >= 0.0f && scalars.decay < 1.0f, "decay must be in [0, 1)",
             scalars.decay);
  check.that(scalars.clip_threshold > 0.0f, "clip_threshold must be positive",
             scalars.clip_threshold);
}

}  // namespace

void Ops::zero(Tensor x) {
  const OpCheck check("zero", device());
  check.tensor("x", x, x.dtype, x.shape, device());
  do_zero(x);
}

void Ops::copy(Tensor dst, Tensor src) {
  const OpCheck check("copy", device());
  OPENMOE_CHECK(dst.dtype == src.dtype && dst.shape == src.shape, "copy: src is ",
                openmoe::name_of(src.dtype), " ", src.shape.to_string(), ", dst is ",
                openmoe::name_of(dst.dtype), " ", dst.shape.to_string());
  for (const Tensor& x : {dst, src})
    OPENMOE_CHECK(x.device == device() || x.device == Device::host, "copy: a tensor is on ",
                  name_of(x.device), ", out of reach of ", name_of(device()));
  check.present("dst", dst);
  check.present("src", src);
  do_copy(dst, src);
}

void Ops::add_accumulate(Tensor y, Tensor x) {
  const OpCheck check("add_accumulate", device());
  check.f32("y", y, y.shape);
  check.f32("x", x, y.shape);
  do_add_accumulate(y, x);
}

void Ops::multiply(Tensor x, float factor) {
  const OpCheck check("multiply", device());
  check.f32("x", x, x.shape);
  do_multiply(x, factor);
}

double Ops::sum_of_squares(Tensor x) {
  const OpCheck check("sum_of_squares", device());
  check.f32("x", x, x.shape);
  return do_sum_of_squares(x);
}

void Ops::embedding_forward(Tensor x, Tensor table, Tensor ids) {
  const OpCheck check("embedding_forward", device());
  check.f32("x", x, {kAny, kAny});
  check.f32("table", table, {kAny, x.size(1)});
  check.i32("ids", ids, {x.size(0)});
  do_embedding_forward(x, table, ids);
}

void Ops::embedding_backward(Tensor dtable, Tensor dx, Tensor ids) {
  const OpCheck check("embedding_backward", device());
  check.f32("dx", dx, {kAny, kAny});
  check.f32("dtable", dtable, {kAny, dx.size(1)});
  check.i32("ids", ids, {dx.size(0)});
  do_embedding_backward(dtable, dx, ids);
}

void Ops::rms_norm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, Tensor segment_ids,
                           float eps) {
  const OpCheck check("rms_norm_forward", device());
  check.f32("x", x, {kAny, kAny});
  check.f32("y", y, x.shape);
  check.f32("rstd", rstd, {x.size(0)});
  check.f32("w", w, {x.size(1)});
  check.i32("segment_ids", segment_ids, {x.size(0)});
  check.that(eps >= 0.0f, "eps must not be negative", eps);
  do_rms_norm_forward(y, rstd, x, w, segment_ids, eps);
}

void Ops::rms_norm_backward_accumulate(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w,
                                       Tensor segment_ids, Tensor rstd) {
  const OpCheck check("rms_norm_backward_accumulate", device());
  check.f32("x", x, {kAny, kAny});
  check.f32("dx", dx, x.shape);
  check.f32("dw", dw, {x.size(1)});
  check.f32("dy", dy, x.shape);
  check.f32("w", w, {x.size(1)});
  check.i32("segment_ids", segment_ids, {x.size(0)});
  check.f32("rstd", rstd, {x.size(0)});
  do_rms_norm_backward_accumulate(dx, dw, dy, x, w, segment_ids, rstd);
}

void Ops::linear_forward(Tensor y, Tensor x, Tensor w) {
  check_linear({"linear_forward", device()}, "y", y, "x", x, "w", w);
  do_linear_forward(y, x, w, false);
}

void Ops::linear_forward_accumulate(Tensor y, Tensor x, Tensor w) {
  check_linear({"linear_forward_accumulate", device()}, "y", y, "x", x, "w", w);
  do_linear_forward(y, x, w, true);
}

void Ops::linear_backward_input(Tensor dx, Tensor dy, Tensor w) {
  check_linear({"linear_backward_input", device()}, "dy", dy, "dx", dx, "w", w);
  do_linear_backward_input(dx, dy, w, false);
}

void Ops::linear_backward_input_accumulate(Tensor dx, Tensor dy, Tensor w) {
  check_linear({"linear_backward_input_accumulate", device()}, "dy", dy, "dx", dx, "w", w);
  do_linear_backward_input(dx, dy, w, true);
}

void Ops::linear_backward_weight(Tensor dw, Tensor dy, Tensor x) {
  check_linear({"linear_backward_weight", device()}, "dy", dy, "x", x, "dw", dw);
  do_linear_backward_weight(dw, dy, x);
}

void Ops::grouped_matmul_forward(Tensor y, Tensor x, Tensor w, Tensor expert_offsets) {
  check_grouped({"grouped_matmul_forward", device()}, "y", y, "x", x, "w", w, expert_offsets);
  do_grouped_matmul_forward(y, x, w, expert_offsets);
}

void Ops::grouped_matmul_backward_input(Tensor dx, Tensor dy, Tensor w, Tensor expert_offsets) {
  check_grouped({"grouped_matmul_backward_input", device()}, "dy", dy, "dx", dx, "w", w,
                expert_offsets);
  do_grouped_matmul_backward_input(dx, dy, w, expert_offsets, false);
}

void Ops::grouped_matmul_backward_input_accumulate(Tensor dx, Tensor dy, Tensor w,
                                                   Tensor expert_offsets) {
  check_grouped({"grouped_matmul_backward_input_accumulate", device()}, "dy", dy, "dx", dx, "w", w,
                expert_offsets);
  do_grouped_matmul_backward_input(dx, dy, w, expert_offsets, true);
}

void Ops::grouped_matmul_backward_weight(Tensor dw, Tensor dy, Tensor x, Tensor expert_offsets) {
  check_grouped({"grouped_matmul_backward_weight", device()}, "dy", dy, "x", x, "dw", dw,
                expert_offsets);
  do_grouped_matmul_backward_weight(dw, dy, x, expert_offsets);
}

void Ops::rope_forward(Tensor x, float base) {
  const OpCheck check("rope_forward", device());
  check.f32("x", x, {kAny, kAny, kAny, kAny});
  check.that(x.size(3) % 2 == 0, "the head width must be even", static_cast<double>(x.size(3)));
  check.that(base > 0.0f, "base must be positive", base);
  do_rope(x, base, false);
}

void Ops::rope_backward(Tensor dx, float base) {
  const OpCheck check("rope_backward", device());
  check.f32("dx", dx, {kAny, kAny, kAny, kAny});
  check.that(dx.size(3) % 2 == 0, "the head width must be even", static_cast<double>(dx.size(3)));
  check.that(base > 0.0f, "base must be positive", base);
  do_rope(dx, base, true);
}

void Ops::attention_forward(Tensor o, Tensor log_z, Tensor q, Tensor k, Tensor v,
                            Tensor segment_ids, float scale) {
  const OpCheck check("attention_forward", device());
  check_attention_inputs(check, q, k, v, segment_ids);
  check.f32("o", o, q.shape);
  check.f32("log_z", log_z, {q.size(0), q.size(2), q.size(1)});
  do_attention_forward(o, log_z, q, k, v, segment_ids, scale);
}

void Ops::attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor d_o, Tensor q, Tensor k,
                             Tensor v, Tensor o, Tensor segment_ids, Tensor log_z, float scale) {
  const OpCheck check("attention_backward", device());
  check_attention_inputs(check, q, k, v, segment_ids);
  check.f32("dq", dq, q.shape);
  check.f32("dk", dk, q.shape);
  check.f32("dv", dv, q.shape);
  check.f32("d_o", d_o, q.shape);
  check.f32("o", o, q.shape);
  check.f32("log_z", log_z, {q.size(0), q.size(2), q.size(1)});
  do_attention_backward(dq, dk, dv, d_o, q, k, v, o, segment_ids, log_z, scale);
}

void Ops::ffn_activation_forward(Tensor h, Tensor gate, Tensor up, FfnKind kind,
                                 std::int64_t num_rows) {
  check_ffn({"ffn_activation_forward", device()}, "h", h, gate, up, kind, num_rows);
  do_ffn_activation_forward(h, gate, up, kind, num_rows);
}

void Ops::ffn_activation_backward(Tensor dgate, Tensor dup, Tensor dh, Tensor gate, Tensor up,
                                  FfnKind kind, std::int64_t num_rows) {
  const OpCheck check("ffn_activation_backward", device());
  check_ffn(check, "dh", dh, gate, up, kind, num_rows);
  check.f32("dgate", dgate, gate.shape);
  check.f32("dup", dup, up.shape);
  do_ffn_activation_backward(dgate, dup, dh, gate, up, kind, num_rows);
}

void Ops::router_forward(const RouterOutput& out, Tensor logits, Tensor routed,
                         const RouterOptions& options) {
  check_router({"router_forward", device()}, "logits", logits, routed, out, options);
  do_router_forward(out, logits, routed, options);
}

void Ops::router_backward(Tensor dlogits, Tensor dgate, Tensor routed, const RouterOutput& saved,
                          const RouterLossScale& scale, const RouterOptions& options) {
  const OpCheck check("router_backward", device());
  check_router(check, "dlogits", dlogits, routed, saved, options);
  check.f32("dgate", dgate, {dlogits.size(0), 2});
  do_router_backward(dlogits, dgate, routed, saved, scale, options);
}

void Ops::gather_rows(Tensor rows, Tensor x, Tensor row_token, std::int64_t num_rows) {
  const OpCheck check("gather_rows", device());
  check.f32("rows", rows, {kAny, kAny});
  check.f32("x", x, {kAny, rows.size(1)});
  check.i32("row_token", row_token, {rows.size(0)});
  check.that(0 <= num_rows && num_rows <= rows.size(0), "num_rows must be within rows",
             static_cast<double>(num_rows));
  do_gather_rows(rows, x, row_token, num_rows);
}

void Ops::gather_rows_backward_accumulate(Tensor dx, Tensor drows, Tensor assignment_row) {
  const OpCheck check("gather_rows_backward_accumulate", device());
  check.f32("dx", dx, {kAny, kAny});
  check.f32("drows", drows, {kAny, dx.size(1)});
  check.i32("assignment_row", assignment_row, {dx.size(0), 2});
  do_gather_rows_backward_accumulate(dx, drows, assignment_row);
}

void Ops::combine_rows_forward_accumulate(Tensor y, Tensor rows, Tensor gate,
                                          Tensor assignment_row) {
  const OpCheck check("combine_rows_forward_accumulate", device());
  check.f32("y", y, {kAny, kAny});
  check.f32("rows", rows, {kAny, y.size(1)});
  check.f32("gate", gate, {y.size(0), 2});
  check.i32("assignment_row", assignment_row, {y.size(0), 2});
  do_combine_rows_forward_accumulate(y, rows, gate, assignment_row);
}

void Ops::combine_rows_backward(Tensor drows, Tensor dgate, Tensor dy, Tensor rows, Tensor gate,
                                Tensor assignment_row) {
  const OpCheck check("combine_rows_backward", device());
  check.f32("dy", dy, {kAny, kAny});
  check.f32("rows", rows, {kAny, dy.size(1)});
  check.f32("drows", drows, rows.shape);
  check.f32("dgate", dgate, {dy.size(0), 2});
  check.f32("gate", gate, {dy.size(0), 2});
  check.i32("assignment_row", assignment_row, {dy.size(0), 2});
  do_combine_rows_backward(drows, dgate, dy, rows, gate, assignment_row);
}

LossSums Ops::softmax_cross_entropy(Tensor logits, Tensor targets, Tensor weights,
                                    Tensor token_loss, float z_weight, float scale) {
  const OpCheck check("softmax_cross_entropy", device());
  check.f32("logits", logits, {kAny, kAny});
  check.that(logits.size(1) > 0, "the vocabulary must not be empty",
             static_cast<double>(logits.size(1)));
  check.i32("targets", targets, {logits.size(0)});
  check.f32("weights", weights, {logits.size(0)});
  if (token_loss) check.f32("token_loss", token_loss, {logits.size(0)});
  check.that(scale >= 0.0f, "scale must not be negative", scale);
  return do_softmax_cross_entropy(logits, targets, weights, token_loss, z_weight, scale);
}

void Ops::adafactor_factored(Tensor w, Tensor row, Tensor col, Tensor g,
                             const AdafactorScalars& scalars) {
  const OpCheck check("adafactor_factored", device());
  check.f32("w", w, {kAny, kAny, kAny});
  check.f32("row", row, {w.size(0), w.size(1)});
  check.f32("col", col, {w.size(0), w.size(2)});
  check.f32("g", g, w.shape);
  check_adafactor(check, scalars);
  do_adafactor_factored(w, row, col, g, scalars);
}

void Ops::adafactor_full(Tensor w, Tensor v, Tensor g, const AdafactorScalars& scalars) {
  const OpCheck check("adafactor_full", device());
  check.f32("w", w, w.shape);
  check.f32("v", v, w.shape);
  check.f32("g", g, w.shape);
  check_adafactor(check, scalars);
  do_adafactor_full(w, v, g, scalars);
}

}  // namespace openmoe
