// CpuOps: the CPU backend of Ops. Always built, runs on any machine, f32 and bf16. One file per op
// family: cpu_ops.cpp (memory and element-wise), embedding, norm, linear, rope, attention_ops, ffn,
// router, expert_rows, cross_entropy, adafactor.
//
// OpenMP threads inside every op, never nested; results do not depend on their number, nor (matrix
// products and attention excepted) on the instruction set in use. One object serves one calling
// thread: ops share scratch memory.
#pragma once

#include <memory>
#include <tuple>
#include <vector>

#include "core/cpu/gemm.h"
#include "core/cpu/scratch.h"
#include "core/ops.h"

namespace openmoe {

class CpuOps final : public Ops {
 public:
  const char* name() const override { return "cpu"; }
  Device device() const override { return Device::host; }
  void* allocate_bytes(std::int64_t bytes) override;
  void free_bytes(void* data, std::int64_t bytes) override;

 private:
  // Rotations of rope: cos, sin and -sin (length, half) of t * base^(-j/half).
  struct RopeTable {
    std::int64_t length = 0;
    std::int64_t half = 0;
    float base = 0.0f;
    std::vector<float> cos, sin, minus_sin;
  };
  void prepare_rope_table(std::int64_t length, std::int64_t half, float base);
  // Runs the jobs that fill(jobs, Element{}, Output{}) adds for operands and result of these types.
  template <class Fill>
  void grouped_product(DType operands, DType result, bool accumulate, const Fill& fill);
  void adafactor_matrix(float* w, float* row, float* col, const float* g, std::int64_t R,
                        std::int64_t C, const AdafactorScalars& scalars, const SharedMatrix* shared,
                        BFloat16* rounded);

  void do_zero(Tensor x) override;
  void do_copy(Tensor dst, Tensor src) override;
  void do_convert(Tensor dst, Tensor src) override;
  void do_add_accumulate(Tensor y, Tensor x) override;
  void do_multiply(Tensor x, float factor) override;
  void do_sums_of_squares(std::span<double> sums, std::span<const Tensor> xs) override;
  void do_copy_rows(Tensor dst, Tensor src, std::span<const RowStretch> stretches) override;
  void do_swap_leading_axes(Tensor dst, Tensor src) override;
  void do_sum_pieces(Tensor y, Tensor pieces) override;
  void do_embedding_forward(Tensor x, Tensor table, Tensor ids,
                            const VocabularyRange& range) override;
  void do_embedding_backward(Tensor dtable, Tensor dx, Tensor ids,
                             const VocabularyRange& range) override;
  void do_rms_norm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, Tensor segment_ids,
                           float eps) override;
  void do_rms_norm_backward_accumulate(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w,
                                       Tensor segment_ids, Tensor rstd) override;
  void do_linear_forward(Tensor y, Tensor x, Tensor w, bool accumulate) override;
  void do_linear_backward_input(Tensor dx, Tensor dy, Tensor w, bool accumulate) override;
  void do_linear_backward_weight(Tensor dw, Tensor dy, Tensor x) override;
  void do_grouped_matmul_forward(Tensor y, Tensor x, Tensor w, Tensor expert_offsets) override;
  void do_grouped_matmul_backward_input(Tensor dx, Tensor dy, Tensor w, Tensor expert_offsets,
                                        bool accumulate) override;
  void do_grouped_matmul_backward_weight(Tensor dw, Tensor dy, Tensor x,
                                         Tensor expert_offsets) override;
  void do_rope(Tensor x, float base, bool inverse) override;
  void do_attention_forward(Tensor o, Tensor log_z, Tensor q, Tensor k, Tensor v,
                            Tensor segment_ids, float scale) override;
  void do_attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor d_o, Tensor q, Tensor k,
                             Tensor v, Tensor o, Tensor segment_ids, Tensor log_z,
                             float scale) override;
  void do_ffn_activation_forward(Tensor h, Tensor gate, Tensor up, FfnKind kind,
                                 std::int64_t num_rows) override;
  void do_ffn_activation_backward(Tensor dgate, Tensor dup, Tensor dh, Tensor gate, Tensor up,
                                  FfnKind kind, std::int64_t num_rows) override;
  void do_router_forward(const RouterOutput& out, Tensor logits, Tensor routed,
                         const RouterOptions& options) override;
  void do_router_backward(Tensor dlogits, Tensor dgate, Tensor routed, const RouterOutput& saved,
                          const RouterLossScale& scale, const RouterOptions& options) override;
  void do_gather_rows(Tensor rows, Tensor x, Tensor row_token, std::int64_t num_rows) override;
  void do_gather_rows_backward_accumulate(Tensor dx, Tensor drows, Tensor assignment_row) override;
  void do_combine_rows_forward_accumulate(Tensor y, Tensor rows, Tensor gate,
                                          Tensor assignment_row) override;
  void do_combine_rows_backward(Tensor drows, Tensor dgate, Tensor dy, Tensor rows, Tensor gate,
                                Tensor assignment_row) override;
  LossSums do_softmax_cross_entropy(Tensor logits, Tensor targets, Tensor weights,
                                    Tensor token_loss, float z_weight, float scale,
                                    const SharedVocabulary* shared) override;
  void do_adafactor_factored(Tensor w, Tensor row, Tensor col, Tensor g,
                             const AdafactorScalars& scalars, const SharedMatrix* shared,
                             Tensor rounded) override;
  void do_adafactor_full(Tensor w, Tensor v, Tensor g, const AdafactorScalars& scalars,
                         const SharedMatrix* shared) override;

  cpu::Scratch scratch_;
  // Of a grouped product, by the types of its operands and result.
  std::tuple<std::vector<cpu::GemmJobT<float, float>>, std::vector<cpu::GemmJobT<BFloat16, float>>,
             std::vector<cpu::GemmJobT<BFloat16, BFloat16>>>
      jobs_;
  RopeTable rope_table_;
};

std::unique_ptr<Ops> make_cpu_ops();

}  // namespace openmoe
