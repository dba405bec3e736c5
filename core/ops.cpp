// The checked public half of Ops: every shape, type and device is compared with the contract of
// ops.h here, once, so that the backends need not. A mismatch is an error of the caller's code and
// ends in OPENMOE_CHECK with the op and the tensor named.
#include "core/ops.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/base/check.h"
#include "core/base/error.h"

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

// One call of an op: its checks, and what its observer is told.
class OpCall {
 public:
  OpCall(const char* op, Device device, OpObserver* profile)
      : op_(op), device_(device), profile_(profile) {
    if (profile_ != nullptr) profile_->begin();
  }
  ~OpCall() {
    if (profile_ != nullptr) profile_->add(op_, flops_);
  }
  OpCall(const OpCall&) = delete;
  OpCall& operator=(const OpCall&) = delete;

  Device device() const { return device_; }
  // Useful arithmetic of this call, for the profile.
  void does(double flops) { flops_ = flops; }

  void f32(const char* name, const Tensor& x, const Shape& shape) const {
    tensor(name, x, DType::f32, shape, device_);
  }
  // A tensor of the compute type.
  void stored(const char* name, const Tensor& x, const Shape& shape) const {
    OPENMOE_CHECK(x.dtype == DType::f32 || x.dtype == DType::bf16, op_, ": ", name, " is ",
                  openmoe::name_of(x.dtype), ", expected f32 or bf16");
    tensor(name, x, x.dtype, shape, device_);
  }
  // Stored as `other` is.
  void stored_as(const Tensor& other, const char* name, const Tensor& x, const Shape& shape) const {
    tensor(name, x, other.dtype, shape, device_);
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
  OpObserver* profile_;
  double flops_ = 0.0;
};

double real(std::int64_t count) {
  return static_cast<double>(count);
}

// A tensor of a product and its name, which the caller gives since it may be a gradient.
struct Named {
  const char* name;
  Tensor tensor;
};

// Operands of one type; a result of f32, or of their type unless it is the gradient of a weight.
enum class ProductResult { any, f32 };

void check_types(const OpCall& call, Named result, Named a, Named b, ProductResult allowed) {
  call.stored(a.name, a.tensor, a.tensor.shape);
  call.stored_as(a.tensor, b.name, b.tensor, b.tensor.shape);
  if (allowed == ProductResult::f32 || result.tensor.dtype != a.tensor.dtype)
    call.f32(result.name, result.tensor, result.tensor.shape);
}

// x (N, in), y (N, out), w (out, in).
void check_linear(OpCall& call, Named y_named, Named x_named, Named w_named) {
  const Tensor &y = y_named.tensor, &x = x_named.tensor, &w = w_named.tensor;
  call.tensor(w_named.name, w, w.dtype, {kAny, kAny}, call.device());
  call.tensor(x_named.name, x, x.dtype, {kAny, w.size(1)}, call.device());
  call.tensor(y_named.name, y, y.dtype, {x.size(0), w.size(0)}, call.device());
  call.does(2.0 * real(x.size(0)) * real(w.size(0)) * real(w.size(1)));
}

// x (M_max, in), y (M_max, out), w (El, in, out), expert_offsets (El + 1) rising from 0 or more to
// at most M_max.
void check_grouped(OpCall& call, Named y_named, Named x_named, Named w_named,
                   Tensor expert_offsets) {
  const Tensor &y = y_named.tensor, &x = x_named.tensor, &w = w_named.tensor;
  call.tensor(w_named.name, w, w.dtype, {kAny, kAny, kAny}, call.device());
  call.tensor(x_named.name, x, x.dtype, {kAny, w.size(1)}, call.device());
  call.tensor(y_named.name, y, y.dtype, {x.size(0), w.size(2)}, call.device());
  call.host_i64("expert_offsets", expert_offsets, {w.size(0) + 1});
  const std::int64_t* offsets = expert_offsets.as<std::int64_t>();
  call.that(offsets[0] >= 0, "expert_offsets must not be negative",
            static_cast<double>(offsets[0]));
  for (std::int64_t g = 0; g < w.size(0); ++g)
    call.that(offsets[g] <= offsets[g + 1], "expert_offsets must not fall",
              static_cast<double>(offsets[g + 1]));
  call.that(offsets[w.size(0)] <= x.size(0), "expert_offsets must end within the rows of x",
            static_cast<double>(offsets[w.size(0)]));
  call.does(2.0 * real(offsets[w.size(0)] - offsets[0]) * real(w.size(1)) * real(w.size(2)));
}

void check_rope(OpCall& call, const char* name, Tensor x, float base) {
  call.stored(name, x, {kAny, kAny, kAny, kAny});
  call.that(x.size(3) % 2 == 0, "the head width must be even", static_cast<double>(x.size(3)));
  call.that(base > 0.0f, "base must be positive", base);
}

void check_attention_inputs(OpCall& call, Tensor q, Tensor k, Tensor v, Tensor segment_ids,
                            double forward_multiple) {
  call.stored("q", q, {kAny, kAny, kAny, kAny});
  call.stored_as(q, "k", k, q.shape);
  call.stored_as(q, "v", v, q.shape);
  call.i32("segment_ids", segment_ids, {q.size(0), q.size(1)});
  // Products over the causal half: scores and their sum over values in the forward, twice that in
  // the backward.
  const double pairs = 0.5 * real(q.size(0)) * real(q.size(1)) * real(q.size(1) + 1);
  call.does(forward_multiple * 4.0 * pairs * real(q.size(2)) * real(q.size(3)));
}

void check_ffn(OpCall& call, const char* h_name, Tensor h, Tensor gate, Tensor up, FfnKind kind,
               std::int64_t num_rows) {
  call.stored(h_name, h, {kAny, kAny});
  const std::int64_t gate_width = (kind == FfnKind::gated_swiglu ? 2 : 1) * h.size(1);
  call.stored_as(h, "gate", gate, {h.size(0), gate_width});
  call.stored_as(h, "up", up, h.shape);
  call.that(0 <= num_rows && num_rows <= h.size(0), "num_rows must be within the rows of h",
            static_cast<double>(num_rows));
}

// The number of tokens and experts come from `logits`, which is (N, E).
void check_router(OpCall& call, const char* logits_name, Tensor logits, Tensor routed,
                  const RouterOutput& out, const RouterOptions& options) {
  call.f32(logits_name, logits, {kAny, kAny});
  const std::int64_t num_tokens = logits.size(0), num_experts = logits.size(1),
                     group = options.group_tokens;
  call.that(num_experts >= 2, "top-2 routing needs at least 2 experts",
            static_cast<double>(num_experts));
  call.that(group > 0 && num_tokens % group == 0, "group_tokens must divide the number of tokens",
            static_cast<double>(group));
  call.that(options.capacity > 0, "capacity must be positive",
            static_cast<double>(options.capacity));
  call.i32("routed", routed, {num_tokens});
  call.f32("prob", out.prob, {num_tokens, num_experts});
  call.f32("log_z", out.log_z, {num_tokens});
  call.i32("choice", out.choice, {num_tokens, 2});
  call.f32("gate", out.gate, {num_tokens, 2});
  call.i32("slot", out.slot, {num_tokens, 2});
  call.f32("group_picks", out.group_picks, {num_tokens / group, num_experts});
  call.f32("group_prob", out.group_prob, {num_tokens / group, num_experts});
  call.f32("group_routed", out.group_routed, {num_tokens / group});
  call.f32("group_z", out.group_z, {num_tokens / group});
}

void check_adafactor(OpCall& call, const AdafactorScalars& scalars) {
  call.that(scalars.decay >= 0.0f && scalars.decay < 1.0f, "decay must be in [0, 1)",
            scalars.decay);
  call.that(scalars.clip_threshold > 0.0f, "clip_threshold must be positive",
            scalars.clip_threshold);
}

}  // namespace

std::string Ops::choose_attention(AttentionKind wanted, const AttentionCall&) {
  if (wanted == AttentionKind::cudnn)
    throw UserError(
        concat("run.attention: found cudnn, allowed with --device ", name(), ": auto, builtin"));
  return "builtin";
}

LogitSums joined(const LogitSums& a, const LogitSums& b) {
  const double largest = std::max(a.largest, b.largest);
  const auto rescaled = [&](const LogitSums& part) {
    return part.sum == 0.0 ? 0.0 : part.sum * std::exp(part.largest - largest);
  };
  return {largest, rescaled(a) + rescaled(b), a.target + b.target,
          b.largest > a.largest ? b.argmax : a.argmax};
}

std::unique_ptr<OpClock> Ops::make_clock() {
  return std::make_unique<HostClock>();
}

const char* Ops::enter(const char* part) {
  if (profile_ != nullptr) profile_->enter(part);
  return std::exchange(part_, part);
}

void Ops::enter_layer(std::int64_t layer, Pass pass) {
  if (profile_ != nullptr) profile_->enter_layer(layer, pass);
}

void Ops::zero(Tensor x) {
  OpCall call("zero", device(), profile_);
  call.tensor("x", x, x.dtype, x.shape, device());
  do_zero(x);
}

namespace {

void check_copy(const OpCall& call, const char* op, Tensor dst, Tensor src) {
  OPENMOE_CHECK(dst.dtype == src.dtype && dst.shape == src.shape, op, ": src is ",
                openmoe::name_of(src.dtype), " ", src.shape.to_string(), ", dst is ",
                openmoe::name_of(dst.dtype), " ", dst.shape.to_string());
  for (const Tensor& x : {dst, src})
    OPENMOE_CHECK(x.device == call.device() || x.device == Device::host, op, ": a tensor is on ",
                  name_of(x.device), ", out of reach of ", name_of(call.device()));
  call.present("dst", dst);
  call.present("src", src);
}

}  // namespace

void Ops::copy(Tensor dst, Tensor src) {
  OpCall call("copy", device(), profile_);
  check_copy(call, "copy", dst, src);
  do_copy(dst, src);
}

void Ops::download(Tensor dst, Tensor src) {
  OpCall call("download", device(), profile_);
  check_copy(call, "download", dst, src);
  OPENMOE_CHECK(dst.device == Device::host, "download: dst is on ", name_of(dst.device));
  do_download(dst, src);
}

void Ops::convert(Tensor dst, Tensor src) {
  OpCall call("convert", device(), profile_);
  call.stored("src", src, src.shape);
  call.stored("dst", dst, src.shape);
  if (dst.dtype == src.dtype)
    do_copy(dst, src);
  else
    do_convert(dst, src);
}

void Ops::add_accumulate(Tensor y, Tensor x) {
  OpCall call("add_accumulate", device(), profile_);
  call.f32("y", y, y.shape);
  call.f32("x", x, y.shape);
  do_add_accumulate(y, x);
}

void Ops::multiply(Tensor x, float factor) {
  OpCall call("multiply", device(), profile_);
  call.f32("x", x, x.shape);
  do_multiply(x, factor);
}

double Ops::sum_of_squares(Tensor x) {
  double sum = 0.0;
  sums_of_squares({&sum, 1}, {&x, 1});
  return sum;
}

void Ops::sums_of_squares(std::span<double> sums, std::span<const Tensor> xs) {
  OpCall call("sum_of_squares", device(), profile_);
  call.that(sums.size() == xs.size(), "a sum for each tensor", real(std::ssize(sums)));
  for (const Tensor& x : xs) call.f32("x", x, x.shape);
  do_sums_of_squares(sums, xs);
}

void Ops::copy_rows(Tensor dst, Tensor src, std::span<const RowStretch> stretches) {
  OpCall call("copy_rows", device(), profile_);
  call.tensor("src", src, src.dtype, {kAny, kAny}, device());
  call.tensor("dst", dst, src.dtype, {kAny, src.size(1)}, device());
  bool is_empty = true;
  for (const RowStretch& stretch : stretches) {
    OPENMOE_CHECK(stretch.num_rows >= 0 && stretch.from >= 0 && stretch.to >= 0 &&
                      stretch.from + stretch.num_rows <= src.size(0) &&
                      stretch.to + stretch.num_rows <= dst.size(0),
                  "copy_rows: ", stretch.num_rows, " rows from ", stretch.from, " of ", src.size(0),
                  " to ", stretch.to, " of ", dst.size(0));
    is_empty = is_empty && stretch.num_rows == 0;
  }
  if (!is_empty && src.size(1) > 0) do_copy_rows(dst, src, stretches);
}

void Ops::swap_leading_axes(Tensor dst, Tensor src) {
  OpCall call("swap_leading_axes", device(), profile_);
  call.tensor("src", src, src.dtype, {kAny, kAny, kAny}, device());
  call.tensor("dst", dst, src.dtype, {src.size(1), src.size(0), src.size(2)}, device());
  if (src.num_elements() > 0) do_swap_leading_axes(dst, src);
}

void Ops::sum_pieces(Tensor y, Tensor pieces) {
  OpCall call("sum_pieces", device(), profile_);
  call.f32("y", y, {kAny});
  call.f32("pieces", pieces, {kAny, y.size(0)});
  call.that(pieces.size(0) > 0, "there must be a piece", static_cast<double>(pieces.size(0)));
  if (y.num_elements() > 0) do_sum_pieces(y, pieces);
}

void Ops::embedding_forward(Tensor x, Tensor table, Tensor ids, const VocabularyRange& range) {
  OpCall call("embedding_forward", device(), profile_);
  call.f32("x", x, {kAny, kAny});
  call.f32("table", table, {kAny, x.size(1)});
  call.i32("ids", ids, {x.size(0)});
  do_embedding_forward(x, table, ids, range);
}

void Ops::embedding_backward(Tensor dtable, Tensor dx, Tensor ids, const VocabularyRange& range) {
  OpCall call("embedding_backward", device(), profile_);
  call.f32("dx", dx, {kAny, kAny});
  call.f32("dtable", dtable, {kAny, dx.size(1)});
  call.i32("ids", ids, {dx.size(0)});
  do_embedding_backward(dtable, dx, ids, range);
}

void Ops::rms_norm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, Tensor segment_ids,
                           float eps) {
  OpCall call("rms_norm_forward", device(), profile_);
  call.f32("x", x, {kAny, kAny});
  call.stored("y", y, x.shape);
  call.f32("rstd", rstd, {x.size(0)});
  call.f32("w", w, {x.size(1)});
  call.i32("segment_ids", segment_ids, {x.size(0)});
  call.that(eps >= 0.0f, "eps must not be negative", eps);
  do_rms_norm_forward(y, rstd, x, w, segment_ids, eps);
}

void Ops::rms_norm_backward_accumulate(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w,
                                       Tensor segment_ids, Tensor rstd) {
  OpCall call("rms_norm_backward_accumulate", device(), profile_);
  call.f32("x", x, {kAny, kAny});
  call.f32("dx", dx, x.shape);
  call.f32("dw", dw, {x.size(1)});
  call.f32("dy", dy, x.shape);
  call.f32("w", w, {x.size(1)});
  call.i32("segment_ids", segment_ids, {x.size(0)});
  call.f32("rstd", rstd, {x.size(0)});
  do_rms_norm_backward_accumulate(dx, dw, dy, x, w, segment_ids, rstd);
}

void Ops::linear_forward(Tensor y, Tensor x, Tensor w) {
  OpCall call("linear_forward", device(), profile_);
  check_types(call, {"y", y}, {"x", x}, {"w", w}, ProductResult::any);
  check_linear(call, {"y", y}, {"x", x}, {"w", w});
  do_linear_forward(y, x, w, false);
}

void Ops::linear_forward_accumulate(Tensor y, Tensor x, Tensor w) {
  OpCall call("linear_forward_accumulate", device(), profile_);
  check_types(call, {"y", y}, {"x", x}, {"w", w}, ProductResult::any);
  check_linear(call, {"y", y}, {"x", x}, {"w", w});
  do_linear_forward(y, x, w, true);
}

void Ops::linear_backward_input(Tensor dx, Tensor dy, Tensor w) {
  OpCall call("linear_backward_input", device(), profile_);
  check_types(call, {"dx", dx}, {"dy", dy}, {"w", w}, ProductResult::any);
  check_linear(call, {"dy", dy}, {"dx", dx}, {"w", w});
  do_linear_backward_input(dx, dy, w, false);
}

void Ops::linear_backward_input_accumulate(Tensor dx, Tensor dy, Tensor w) {
  OpCall call("linear_backward_input_accumulate", device(), profile_);
  check_types(call, {"dx", dx}, {"dy", dy}, {"w", w}, ProductResult::any);
  check_linear(call, {"dy", dy}, {"dx", dx}, {"w", w});
  do_linear_backward_input(dx, dy, w, true);
}

void Ops::linear_backward_weight(Tensor dw, Tensor dy, Tensor x) {
  OpCall call("linear_backward_weight", device(), profile_);
  check_types(call, {"dw", dw}, {"dy", dy}, {"x", x}, ProductResult::f32);
  check_linear(call, {"dy", dy}, {"x", x}, {"dw", dw});
  do_linear_backward_weight(dw, dy, x);
}

void Ops::grouped_matmul_forward(Tensor y, Tensor x, Tensor w, Tensor expert_offsets) {
  OpCall call("grouped_matmul_forward", device(), profile_);
  check_types(call, {"y", y}, {"x", x}, {"w", w}, ProductResult::any);
  check_grouped(call, {"y", y}, {"x", x}, {"w", w}, expert_offsets);
  do_grouped_matmul_forward(y, x, w, expert_offsets);
}

void Ops::grouped_matmul_backward_input(Tensor dx, Tensor dy, Tensor w, Tensor expert_offsets) {
  OpCall call("grouped_matmul_backward_input", device(), profile_);
  check_types(call, {"dx", dx}, {"dy", dy}, {"w", w}, ProductResult::any);
  check_grouped(call, {"dy", dy}, {"dx", dx}, {"w", w}, expert_offsets);
  do_grouped_matmul_backward_input(dx, dy, w, expert_offsets, false);
}

void Ops::grouped_matmul_backward_input_accumulate(Tensor dx, Tensor dy, Tensor w,
                                                   Tensor expert_offsets) {
  OpCall call("grouped_matmul_backward_input_accumulate", device(), profile_);
  check_types(call, {"dx", dx}, {"dy", dy}, {"w", w}, ProductResult::any);
  check_grouped(call, {"dy", dy}, {"dx", dx}, {"w", w}, expert_offsets);
  do_grouped_matmul_backward_input(dx, dy, w, expert_offsets, true);
}

void Ops::grouped_matmul_backward_weight(Tensor dw, Tensor dy, Tensor x, Tensor expert_offsets) {
  OpCall call("grouped_matmul_backward_weight", device(), profile_);
  check_types(call, {"dw", dw}, {"dy", dy}, {"x", x}, ProductResult::f32);
  check_grouped(call, {"dy", dy}, {"x", x}, {"dw", dw}, expert_offsets);
  do_grouped_matmul_backward_weight(dw, dy, x, expert_offsets);
}

void Ops::rope_forward(Tensor x, float base) {
  OpCall call("rope_forward", device(), profile_);
  check_rope(call, "x", x, base);
  do_rope(x, base, false);
}

void Ops::rope_backward(Tensor dx, float base) {
  OpCall call("rope_backward", device(), profile_);
  check_rope(call, "dx", dx, base);
  do_rope(dx, base, true);
}

void Ops::rope_forward(Tensor q, Tensor k, float base) {
  OpCall call("rope_forward", device(), profile_);
  check_rope(call, "q", q, base);
  call.stored_as(q, "k", k, q.shape);
  do_rope_pair(q, k, base, false);
}

void Ops::rope_backward(Tensor dq, Tensor dk, float base) {
  OpCall call("rope_backward", device(), profile_);
  check_rope(call, "dq", dq, base);
  call.stored_as(dq, "dk", dk, dq.shape);
  do_rope_pair(dq, dk, base, true);
}

void Ops::attention_forward(Tensor o, Tensor log_z, Tensor q, Tensor k, Tensor v,
                            Tensor segment_ids, float scale) {
  OpCall call("attention_forward", device(), profile_);
  check_attention_inputs(call, q, k, v, segment_ids, 1.0);
  call.stored_as(q, "o", o, q.shape);
  call.f32("log_z", log_z, {q.size(0), q.size(2), q.size(1)});
  do_attention_forward(o, log_z, q, k, v, segment_ids, scale);
}

void Ops::attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor d_o, Tensor q, Tensor k,
                             Tensor v, Tensor o, Tensor segment_ids, Tensor log_z, float scale) {
  OpCall call("attention_backward", device(), profile_);
  check_attention_inputs(call, q, k, v, segment_ids, 2.0);
  call.stored_as(q, "dq", dq, q.shape);
  call.stored_as(q, "dk", dk, q.shape);
  call.stored_as(q, "dv", dv, q.shape);
  call.stored_as(q, "d_o", d_o, q.shape);
  call.stored_as(q, "o", o, q.shape);
  call.f32("log_z", log_z, {q.size(0), q.size(2), q.size(1)});
  do_attention_backward(dq, dk, dv, d_o, q, k, v, o, segment_ids, log_z, scale);
}

void Ops::ffn_activation_forward(Tensor h, Tensor gate, Tensor up, FfnKind kind,
                                 std::int64_t num_rows) {
  OpCall call("ffn_activation_forward", device(), profile_);
  check_ffn(call, "h", h, gate, up, kind, num_rows);
  do_ffn_activation_forward(h, gate, up, kind, num_rows);
}

void Ops::ffn_activation_backward(Tensor dgate, Tensor dup, Tensor dh, Tensor gate, Tensor up,
                                  FfnKind kind, std::int64_t num_rows) {
  OpCall call("ffn_activation_backward", device(), profile_);
  check_ffn(call, "dh", dh, gate, up, kind, num_rows);
  call.stored_as(dh, "dgate", dgate, gate.shape);
  call.stored_as(dh, "dup", dup, up.shape);
  do_ffn_activation_backward(dgate, dup, dh, gate, up, kind, num_rows);
}

void Ops::router_forward(const RouterOutput& out, Tensor logits, Tensor routed,
                         const RouterOptions& options) {
  OpCall call("router_forward", device(), profile_);
  check_router(call, "logits", logits, routed, out, options);
  do_router_forward(out, logits, routed, options);
}

void Ops::router_backward(Tensor dlogits, Tensor dgate, Tensor routed, const RouterOutput& saved,
                          const RouterLossScale& scale, const RouterOptions& options) {
  OpCall call("router_backward", device(), profile_);
  check_router(call, "dlogits", dlogits, routed, saved, options);
  call.f32("dgate", dgate, {dlogits.size(0), 2});
  do_router_backward(dlogits, dgate, routed, saved, scale, options);
}

void Ops::gather_rows(Tensor rows, Tensor x, Tensor row_token, std::int64_t num_rows) {
  OpCall call("gather_rows", device(), profile_);
  call.stored("rows", rows, {kAny, kAny});
  call.stored_as(rows, "x", x, {kAny, rows.size(1)});
  call.i32("row_token", row_token, {rows.size(0)});
  call.that(0 <= num_rows && num_rows <= rows.size(0), "num_rows must be within rows",
            static_cast<double>(num_rows));
  do_gather_rows(rows, x, row_token, num_rows);
}

void Ops::gather_rows_backward_accumulate(Tensor dx, Tensor drows, Tensor assignment_row) {
  OpCall call("gather_rows_backward_accumulate", device(), profile_);
  call.f32("dx", dx, {kAny, kAny});
  call.stored("drows", drows, {kAny, dx.size(1)});
  call.i32("assignment_row", assignment_row, {dx.size(0), 2});
  do_gather_rows_backward_accumulate(dx, drows, assignment_row);
}

void Ops::combine_rows_forward_accumulate(Tensor y, Tensor rows, Tensor gate,
                                          Tensor assignment_row) {
  OpCall call("combine_rows_forward_accumulate", device(), profile_);
  call.f32("y", y, {kAny, kAny});
  call.stored("rows", rows, {kAny, y.size(1)});
  call.f32("gate", gate, {y.size(0), 2});
  call.i32("assignment_row", assignment_row, {y.size(0), 2});
  do_combine_rows_forward_accumulate(y, rows, gate, assignment_row);
}

void Ops::combine_rows_backward(Tensor drows, Tensor dgate, Tensor dy, Tensor rows, Tensor gate,
                                Tensor assignment_row) {
  OpCall call("combine_rows_backward", device(), profile_);
  call.f32("dy", dy, {kAny, kAny});
  call.stored("rows", rows, {kAny, dy.size(1)});
  call.stored_as(rows, "drows", drows, rows.shape);
  call.f32("dgate", dgate, {dy.size(0), 2});
  call.f32("gate", gate, {dy.size(0), 2});
  call.i32("assignment_row", assignment_row, {dy.size(0), 2});
  do_combine_rows_backward(drows, dgate, dy, rows, gate, assignment_row);
}

LossSums Ops::softmax_cross_entropy(Tensor logits, Tensor targets, Tensor weights,
                                    Tensor token_loss, float z_weight, float scale,
                                    const SharedVocabulary* shared) {
  OpCall call("softmax_cross_entropy", device(), profile_);
  call.f32("logits", logits, {kAny, kAny});
  call.that(logits.size(1) > 0, "the vocabulary must not be empty",
            static_cast<double>(logits.size(1)));
  call.i32("targets", targets, {logits.size(0)});
  call.f32("weights", weights, {logits.size(0)});
  if (token_loss) call.f32("token_loss", token_loss, {logits.size(0)});
  call.that(scale >= 0.0f, "scale must not be negative", scale);
  return do_softmax_cross_entropy(logits, targets, weights, token_loss, z_weight, scale, shared);
}

void Ops::adafactor_factored(Tensor w, Tensor row, Tensor col, Tensor g,
                             const AdafactorScalars& scalars, const SharedMatrix* shared,
                             Tensor rounded) {
  OpCall call("adafactor_factored", device(), profile_);
  call.f32("w", w, {kAny, kAny, kAny});
  call.f32("row", row, {w.size(0), w.size(1)});
  call.f32("col", col, {w.size(0), w.size(2)});
  call.f32("g", g, w.shape);
  if (rounded) call.tensor("rounded", rounded, DType::bf16, w.shape, device());
  check_adafactor(call, scalars);
  do_adafactor_factored(w, row, col, g, scalars, shared, rounded);
}

void Ops::adafactor_full(Tensor w, Tensor v, Tensor g, const AdafactorScalars& scalars,
                         const SharedMatrix* shared) {
  OpCall call("adafactor_full", device(), profile_);
  call.f32("w", w, w.shape);
  call.f32("v", v, w.shape);
  call.f32("g", g, w.shape);
  check_adafactor(call, scalars);
  do_adafactor_full(w, v, g, scalars, shared);
}

}  // namespace openmoe
