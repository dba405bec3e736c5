// CudaOps: the CUDA backend of Ops. One file per op family, named as in core/cpu. The kernels are
// templates over the storage type, f32 or bf16.
//
// Every op is enqueued on one stream and returns at once, except those that give a number to the
// host (sum_of_squares, softmax_cross_entropy, Adafactor on shared matrices, copy to the host) and
// copies from the host of more than kStagingBytes, which wait for that stream and nothing else.
// Results are deterministic: no atomics on floating point, reductions in fixed order, whose shape
// depends on the sizes alone and not on the device.
#pragma once

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <array>
#include <vector>

#include "core/ops.h"
#include "cuda/cudnn_attention.h"
#include "cuda/gemm.h"
#include "cuda/scratch.h"

namespace openmoe {

class CudaOps final : public Ops {
 public:
  explicit CudaOps(int device_index);
  ~CudaOps() override;

  const char* name() const override { return "cuda"; }
  Device device() const override { return Device::cuda; }
  void* allocate_bytes(std::int64_t bytes) override;
  void free_bytes(void* data, std::int64_t bytes) override;
  void* allocate_host_bytes(std::int64_t bytes) override;
  void free_host_bytes(void* data, std::int64_t bytes) override;
  std::int64_t workspace_bytes(const WorkSizes& sizes) override;
  void use_workspace(Tensor memory) override;
  bool downloads_are_done() override;
  void finish_downloads() override;
  std::unique_ptr<OpClock> make_clock() override;
  // "cuDNN 9.19.0", "builtin", or what each direction takes and why.
  std::string choose_attention(AttentionKind wanted, const AttentionCall& call) override;
  cudaStream_t stream() const { return stream_; }
  // What travels between devices has a stream of its own. All communicators share it, so that their
  // transfers run in the order in which the host started them, which is the same on every rank;
  // those of two NCCL communicators at once could otherwise wait for each other.
  cudaStream_t transfer_stream() const { return transfer_stream_; }

 private:
  static constexpr std::size_t kMostSums = 64;  // that the host learns with one wait
  // What an op tells the host, in pinned memory, written by a kernel or a copy and read after the
  // stream has been waited for.
  struct Report {
    double values[kMostSums];
    // Set by kernels that met an index outside its table; stays set, so that it is seen at the next
    // wait.
    int bad_id;
    int bad_target;
  };
  // Rotations of rope on the device, in one block: cos then sin (length, half) of t *
  // base^(-j/half).
  struct RopeTable {
    float* cosines = nullptr;
    float* sines = nullptr;
    std::int64_t length = 0;
    std::int64_t half = 0;
    float base = 0.0f;
  };

  // Page-locked memory through which small tensors of the host reach the device, so that the host
  // need not wait until they are there.
  struct Staging {
    void* data = nullptr;
    cudaEvent_t is_free = nullptr;
  };
  static constexpr std::int64_t kStagingBytes = 1 << 20;

  struct StreamOwner {
    cudaStream_t stream;
    ~StreamOwner() { cudaStreamDestroy(stream); }
  };

  void upload(Tensor dst, Tensor src);
  // Before an op changes what downloads read.
  void wait_for_downloads();
  // Waits for the stream and returns what was reported. Throws where a kernel met a bad index.
  const Report& wait_for_report();
  std::int64_t attention_scratch(const AttentionCall& call);
  const cuda::CudnnAttention::Plan* cudnn_plan(const cuda::AttentionProblem& problem);
  void prepare_rope_table(std::int64_t length, std::int64_t half, float base);
  void rotate(Tensor first, Tensor second, std::int64_t count, float base, bool inverse);
  // Replaces `count` numbers on the device by their sums over the ranks that share a matrix: one
  // trip to the host.
  void sum_over_ranks(double* values, std::int64_t count, const SharedMatrix& shared);
  LossSums shared_cross_entropy(Tensor logits, Tensor targets, Tensor weights, Tensor token_loss,
                                float z_weight, float scale, const SharedVocabulary& shared);

  void do_zero(Tensor x) override;
  void do_copy(Tensor dst, Tensor src) override;
  void do_download(Tensor dst, Tensor src) override;
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
  void do_rope_pair(Tensor q, Tensor k, float base, bool inverse) override;
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

  int device_index_;
  cudaStream_t stream_ = nullptr, transfer_stream_ = nullptr, download_stream_ = nullptr;
  // Declared before the libraries' handles, which refer to the stream until they are destroyed.
  StreamOwner owner_{stream_};
  cudaEvent_t computed_ = nullptr, downloaded_ = nullptr;
  bool may_download_ = false;  // since stream_ was made to wait for downloaded_
  std::array<Staging, 4> staging_{};
  std::size_t next_staging_ = 0;
  Report* report_ = nullptr;         // pinned host memory
  Report* device_report_ = nullptr;  // its twin on the device
  cuda::Scratch scratch_;
  cuda::PinnedScratch pinned_;
  cuda::Gemm gemm_;
  std::vector<cuda::GemmJob> jobs_;
  RopeTable rope_table_;
  AttentionKind attention_ = AttentionKind::automatic;
  cuda::CudnnAttention cudnn_;
};

}  // namespace openmoe
