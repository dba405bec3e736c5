// Attention of the CUDA backend: cuDNN's kernels or this program's own, by direction. Both are
// deterministic, and leave the same o and log_z, so one direction may go either way without the
// other.
#include <algorithm>
#include <string>

#include "core/base/check.h"
#include "core/base/error.h"
#include "cuda/attention.h"
#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/kernel_shapes.h"
#include "cuda/sequences.h"

namespace openmoe {
namespace cuda {
namespace {

// What `auto` grants a plan. The deterministic backward of cuDNN before 9.25 keeps a length x
// length matrix of each head and sequence, which soon is more than everything else in memory.
constexpr std::int64_t kAutoWorkspaceBytes = std::int64_t{256} << 20;
constexpr std::size_t kMaxWords = 300;

AttentionProblem problem_of(const Shape& q, DType dtype, float scale, bool backward) {
  return {.sequences = max_sequences(q[0], q[1]),
          .length = q[1],
          .heads = q[2],
          .head_dim = q[3],
          .positions = q[0] * q[1],
          .dtype = dtype,
          .scale = scale,
          .backward = backward};
}

AttentionShape shape_of(const Shape& q, float scale) {
  return {q[0], q[1], q[2], q[3], scale, true};
}

// cuDNN says a line for every kernel that it tried.
std::string one_line(std::string words) {
  std::replace(words.begin(), words.end(), '\n', ' ');
  if (words.size() > kMaxWords) words = words.substr(0, kMaxWords) + " ...";
  return words;
}

// Why `auto` does not take the plan, or "".
std::string reason_against(const CudnnAttention::Plan& plan) {
  if (!plan.refusal.empty()) return one_line(plan.refusal);
  if (plan.workspace_bytes <= kAutoWorkspaceBytes) return "";
  return concat("cuDNN's would take ", plan.workspace_bytes >> 20, " MiB of workspace, more than ",
                kAutoWorkspaceBytes >> 20);
}

// What a call works in beside its tensors. `plan` null: builtin.
struct AttentionScratch {
  float* delta = nullptr;  // (B, H, T), of the backward
  Sequences sequences;     // these and what follows: of cuDNN
  float* stats = nullptr;  // (sequences.max, H, T)
  char* workspace = nullptr;

  void take(ScratchCursor& cursor, const AttentionShape& shape, const CudnnAttention::Plan* plan,
            bool backward) {
    if (backward) delta = cursor.take<float>(shape.B * shape.H * shape.T);
    if (plan == nullptr) return;
    sequences.take(cursor, shape);
    stats = cursor.take<float>(sequences.max * shape.H * shape.T);
    workspace = cursor.take<char>(plan->workspace_bytes);
  }
};

template <typename... Tensors>
bool all_aligned(const Tensors&... tensors) {
  return ((reinterpret_cast<std::uintptr_t>(tensors.data) % 16 == 0) &&
          ...);  // what cuDNN is promised
}

}  // namespace
}  // namespace cuda

std::string CudaOps::choose_attention(AttentionKind wanted, const AttentionCall& call) {
  attention_ = wanted;
  if (call.shape[3] > cuda::kMaxHeadDim)
    throw UserError(concat("model.head_dim: found ", call.shape[3],
                           ", allowed with --device cuda: "
                           "up to ",
                           cuda::kMaxHeadDim, "; or use --device cpu"));
  if (wanted == AttentionKind::builtin) return "builtin";
  std::string reasons[2];
  for (const bool backward : {false, true}) {
    if (backward && !call.backward) break;
    const cuda::CudnnAttention::Plan& plan =
        cudnn_.plan(cuda::problem_of(call.shape, call.dtype, call.scale, backward));
    if (wanted == AttentionKind::cudnn && !plan.refusal.empty())
      throw UserError(concat("run.attention: found cudnn, which cannot be had ",
                             backward ? "backward" : "forward", ": ", cuda::one_line(plan.refusal),
                             "; run.attention=auto takes it where it can be had, builtin needs no "
                             "cuDNN"));
    if (wanted == AttentionKind::automatic) reasons[backward] = cuda::reason_against(plan);
  }
  if (!call.backward || reasons[0] == reasons[1])
    return reasons[0].empty() ? cudnn_.version() : concat("builtin: ", reasons[0]);
  const auto part = [&](bool backward) {
    return reasons[backward].empty() ? cudnn_.version()
                                     : concat("builtin (", reasons[backward], ")");
  };
  return concat("forward ", part(false), ", backward ", part(true));
}

// The plan, or null: builtin.
const cuda::CudnnAttention::Plan* CudaOps::cudnn_plan(const cuda::AttentionProblem& problem) {
  if (attention_ == AttentionKind::builtin) return nullptr;
  const cuda::CudnnAttention::Plan& plan = cudnn_.plan(problem);
  if (attention_ == AttentionKind::automatic)
    return cuda::reason_against(plan).empty() ? &plan : nullptr;
  if (!plan.refusal.empty())
    throw RuntimeFault(concat(
        "attention: run.attention is cudnn, and a later call has other sizes (", problem.positions,
        " positions in rows of ", problem.length, "), for which it cannot be had: ",
        cuda::one_line(plan.refusal), "; use run.attention=auto"));
  return &plan;
}

std::int64_t CudaOps::attention_scratch(const AttentionCall& call) {
  const cuda::AttentionShape shape = cuda::shape_of(call.shape, call.scale);
  std::int64_t most = 0;
  for (const bool backward : {false, true}) {
    if (backward && !call.backward) break;
    const cuda::CudnnAttention::Plan* const plan =
        cudnn_plan(cuda::problem_of(call.shape, call.dtype, call.scale, backward));
    most = std::max(most, cuda::carved_bytes([&](cuda::ScratchCursor& cursor) {
                      cuda::AttentionScratch().take(cursor, shape, plan, backward);
                    }));
  }
  return most;
}

void CudaOps::do_attention_forward(Tensor o, Tensor log_z, Tensor q, Tensor k, Tensor v,
                                   Tensor segment_ids, float scale) {
  if (q.num_elements() == 0) return;
  const cuda::AttentionForward tensors{o, log_z, q, k, v, segment_ids};
  const cuda::AttentionProblem problem = cuda::problem_of(q.shape, q.dtype, scale, false);
  const cuda::CudnnAttention::Plan* const plan =
      cuda::all_aligned(o, q, k, v) ? cudnn_plan(problem) : nullptr;
  if (plan == nullptr) return cuda::builtin_attention_forward(stream_, tensors, scale);

  const cuda::AttentionShape shape = cuda::shape_of(q.shape, scale);
  const std::int32_t* const ids = segment_ids.as<std::int32_t>();
  cuda::AttentionScratch work;
  cuda::carve(scratch_,
              [&](cuda::ScratchCursor& cursor) { work.take(cursor, shape, plan, false); });
  const cuda::Sequences& sequences = work.sequences;
  cuda::find_sequences(stream_, sequences, ids, shape);
  cuda::builtin_attention_forward(stream_, tensors, scale, sequences.first);
  cudnn_.run(problem, {.q = q.data,
                       .k = k.data,
                       .v = v.data,
                       .o = o.data,
                       .stats = work.stats,
                       .lengths = sequences.length,
                       .offsets = sequences.offset,
                       .workspace = work.workspace});
  cuda::finish_forward(stream_, log_z.as<float>(), o.as<__nv_bfloat16>(), work.stats, sequences,
                       ids, shape);
}

void CudaOps::do_attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor d_o, Tensor q, Tensor k,
                                    Tensor v, Tensor o, Tensor segment_ids, Tensor log_z,
                                    float scale) {
  if (q.num_elements() == 0) return;
  const cuda::AttentionBackward tensors{dq, dk, dv, d_o, q, k, v, o, segment_ids, log_z};
  const cuda::AttentionProblem problem = cuda::problem_of(q.shape, q.dtype, scale, true);
  const cuda::CudnnAttention::Plan* const plan =
      cuda::all_aligned(dq, dk, dv, d_o, q, k, v, o) ? cudnn_plan(problem) : nullptr;
  const cuda::AttentionShape shape = cuda::shape_of(q.shape, scale);
  cuda::AttentionScratch work;
  cuda::carve(scratch_, [&](cuda::ScratchCursor& cursor) { work.take(cursor, shape, plan, true); });
  if (plan == nullptr) return cuda::builtin_attention_backward(stream_, tensors, work.delta, scale);
  const cuda::Sequences& sequences = work.sequences;

  const std::int32_t* const ids = segment_ids.as<std::int32_t>();
  cuda::find_sequences(stream_, sequences, ids, shape);
  cuda::builtin_attention_backward(stream_, tensors, work.delta, scale, sequences.first);
  cuda::collect_stats(stream_, work.stats, log_z.as<float>(), sequences, shape);
  cudnn_.run(problem, {.q = q.data,
                       .k = k.data,
                       .v = v.data,
                       .o = o.data,
                       .stats = work.stats,
                       .lengths = sequences.length,
                       .offsets = sequences.offset,
                       .d_o = d_o.data,
                       .dq = dq.data,
                       .dk = dk.data,
                       .dv = dv.data,
                       .workspace = work.workspace});
  cuda::clear_padding(stream_, dq.as<__nv_bfloat16>(), dk.as<__nv_bfloat16>(),
                      dv.as<__nv_bfloat16>(), sequences, ids, shape);
}

}  // namespace openmoe
