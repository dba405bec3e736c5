#include "apps/plan_ops.h"

#include <sys/mman.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

double bytes_of(std::initializer_list<Tensor> tensors) {
  double bytes = 0.0;
  for (const Tensor& tensor : tensors) bytes += static_cast<double>(tensor.size_bytes());
  return bytes;
}

double real(std::int64_t count) {
  return static_cast<double>(count);
}

class PlanOps final : public Ops {
 public:
  explicit PlanOps(WorkListener& listener) : listener_(listener) {}

  const char* name() const override { return "plan"; }
  Device device() const override { return Device::host; }
  // Addresses that may not be used.
  void* allocate_bytes(std::int64_t bytes) override {
    void* const block = mmap(nullptr, static_cast<std::size_t>(bytes) + kPage, PROT_NONE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED)
      throw RuntimeFault(concat("mmap of ", bytes, " bytes of addresses for a plan failed"));
    return block;
  }
  void free_bytes(void* data, std::int64_t bytes) override {
    munmap(data, static_cast<std::size_t>(bytes) + kPage);
  }

 private:
  static constexpr std::size_t kPage = 4096;  // a block of 0 bytes has an address too

  void move(double bytes) { listener_.on_work({0.0, DType::f32, bytes}); }
  void multiply_add(double flops, DType operands, std::initializer_list<Tensor> tensors) {
    listener_.on_work({flops, operands, bytes_of(tensors)});
  }

  void do_zero(Tensor x) override { move(bytes_of({x})); }
  void do_copy(Tensor dst, Tensor src) override { move(bytes_of({dst, src})); }
  void do_convert(Tensor dst, Tensor src) override { move(bytes_of({dst, src})); }
  void do_add_accumulate(Tensor y, Tensor x) override { move(bytes_of({y, y, x})); }
  void do_multiply(Tensor x, float) override { move(bytes_of({x, x})); }
  void do_sums_of_squares(std::span<double> sums, std::span<const Tensor> xs) override {
    for (const Tensor& x : xs) move(bytes_of({x}));
    std::fill(sums.begin(), sums.end(), 0.0);
  }
  void do_copy_rows(Tensor, Tensor src, std::span<const RowStretch> stretches) override {
    for (const RowStretch& stretch : stretches)
      move(2.0 * real(stretch.num_rows * src.row_bytes()));
  }
  void do_swap_leading_axes(Tensor dst, Tensor src) override { move(bytes_of({dst, src})); }
  void do_sum_pieces(Tensor y, Tensor pieces) override { move(bytes_of({y, pieces})); }
  void do_embedding_forward(Tensor x, Tensor, Tensor, const VocabularyRange&) override {
    move(bytes_of({x, x}));
  }
  void do_embedding_backward(Tensor, Tensor dx, Tensor, const VocabularyRange&) override {
    move(bytes_of({dx, dx, dx}));
  }
  void do_rms_norm_forward(Tensor y, Tensor, Tensor x, Tensor, Tensor, float) override {
    move(bytes_of({y, x}));
  }
  void do_rms_norm_backward_accumulate(Tensor dx, Tensor, Tensor dy, Tensor x, Tensor, Tensor,
                                       Tensor) override {
    move(bytes_of({dx, dx, dy, x}));
  }
  void do_linear_forward(Tensor y, Tensor x, Tensor w, bool) override { product(y, x, w); }
  void do_linear_backward_input(Tensor dx, Tensor dy, Tensor w, bool) override {
    product(dy, dx, w);
  }
  void do_linear_backward_weight(Tensor dw, Tensor dy, Tensor x) override { product(dy, x, dw); }
  // x (N, in), y (N, out), w (out, in)
  void product(Tensor y, Tensor x, Tensor w) {
    // A gradient may be f32 beside bf16 operands, so the operands' type is the smaller one.
    const DType type = size_of(y.dtype) < size_of(x.dtype) ? y.dtype : x.dtype;
    multiply_add(2.0 * real(x.size(0)) * real(w.size(0)) * real(w.size(1)), type, {y, x, w});
  }
  void do_grouped_matmul_forward(Tensor y, Tensor x, Tensor w, Tensor offsets) override {
    grouped(y, x, w, offsets);
  }
  void do_grouped_matmul_backward_input(Tensor dx, Tensor dy, Tensor w, Tensor offsets,
                                        bool) override {
    grouped(dy, dx, w, offsets);
  }
  void do_grouped_matmul_backward_weight(Tensor dw, Tensor dy, Tensor x, Tensor offsets) override {
    grouped(dy, x, dw, offsets);
  }
  void grouped(Tensor y, Tensor x, Tensor w, Tensor offsets) {
    const auto* const at = offsets.as<std::int64_t>();
    const std::int64_t rows = at[w.size(0)] - at[0];
    const DType type = size_of(y.dtype) < size_of(x.dtype) ? y.dtype : x.dtype;
    multiply_add(2.0 * real(rows) * real(w.size(1)) * real(w.size(2)), type,
                 {y.rows(0, rows), x.rows(0, rows), w});
  }
  void do_rope(Tensor x, float, bool) override { move(bytes_of({x, x})); }
  // Products over the causal half: two in the forward; in the backward the scores again and the
  // four gradients (Dao et al. 2022), which is more than the useful arithmetic.
  void do_attention_forward(Tensor o, Tensor, Tensor q, Tensor k, Tensor v, Tensor,
                            float) override {
    multiply_add(2.0 * causal_product(q), q.dtype, {o, q, k, v});
  }
  void do_attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor d_o, Tensor q, Tensor k,
                             Tensor v, Tensor o, Tensor, Tensor, float) override {
    multiply_add(5.0 * causal_product(q), q.dtype, {dq, dk, dv, d_o, q, k, v, o});
  }
  static double causal_product(const Tensor& q) {
    return real(q.size(0)) * real(q.size(1)) * real(q.size(1) + 1) * real(q.size(2)) *
           real(q.size(3));
  }
  void do_ffn_activation_forward(Tensor h, Tensor gate, Tensor up, FfnKind,
                                 std::int64_t rows) override {
    move(bytes_of({h.rows(0, rows), gate.rows(0, rows), up.rows(0, rows)}));
  }
  void do_ffn_activation_backward(Tensor dgate, Tensor dup, Tensor dh, Tensor gate, Tensor up,
                                  FfnKind, std::int64_t rows) override {
    for (const Tensor& x : {dgate, dup, dh, gate, up}) move(bytes_of({x.rows(0, rows)}));
  }
  void do_router_forward(const RouterOutput& out, Tensor logits, Tensor,
                         const RouterOptions&) override {
    move(bytes_of({logits, out.prob, out.choice, out.gate, out.slot}));
  }
  void do_router_backward(Tensor dlogits, Tensor dgate, Tensor, const RouterOutput& saved,
                          const RouterLossScale&, const RouterOptions&) override {
    move(bytes_of({dlogits, dgate, saved.prob}));
  }
  void do_gather_rows(Tensor rows, Tensor, Tensor, std::int64_t num_rows) override {
    const Tensor written = rows.rows(0, num_rows);
    move(bytes_of({written, written}));
  }
  void do_gather_rows_backward_accumulate(Tensor dx, Tensor drows, Tensor) override {
    move(bytes_of({dx, dx, drows}));
  }
  void do_combine_rows_forward_accumulate(Tensor y, Tensor rows, Tensor, Tensor) override {
    move(bytes_of({y, y, rows}));
  }
  void do_combine_rows_backward(Tensor drows, Tensor, Tensor dy, Tensor rows, Tensor,
                                Tensor) override {
    move(bytes_of({drows, dy, rows}));
  }
  LossSums do_softmax_cross_entropy(Tensor logits, Tensor, Tensor, Tensor, float, float,
                                    const SharedVocabulary* shared) override {
    move(bytes_of({logits, logits, logits, logits}));
    if (shared == nullptr) return {};
    sums_.resize(static_cast<std::size_t>(logits.size(0)));
    shared->combine(sums_);
    return {};
  }
  void do_adafactor_factored(Tensor w, Tensor row, Tensor col, Tensor g, const AdafactorScalars&,
                             const SharedMatrix* shared, Tensor rounded) override {
    // Three passes, the last of which writes w.
    move(bytes_of({w, g, g, w, g, w, row, col}) + (rounded ? bytes_of({rounded}) : 0));
    if (shared == nullptr) return;
    const bool by_rows = shared->axis == SharedMatrix::Axis::rows;
    for (std::int64_t s = 0; s < w.size(0); ++s) {
      ask(*shared, by_rows ? w.size(2) + 2 : w.size(1) + 1);
      ask(*shared, 1);
    }
  }
  void do_adafactor_full(Tensor w, Tensor v, Tensor g, const AdafactorScalars&,
                         const SharedMatrix* shared) override {
    move(bytes_of({w, g, v, v, w, g, v, w}));  // two passes
    if (shared != nullptr) ask(*shared, 2);
  }
  void ask(const SharedMatrix& shared, std::int64_t count) {
    values_.resize(static_cast<std::size_t>(count));
    shared.sum(values_);
  }

  WorkListener& listener_;
  std::vector<LogitSums> sums_;
  std::vector<double> values_;
};

}  // namespace

std::unique_ptr<Ops> make_plan_ops(WorkListener& listener) {
  return std::make_unique<PlanOps>(listener);
}

}  // namespace openmoe
