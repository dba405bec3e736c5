// Attention by cuDNN's fused kernels: which problems it takes, their plans, and running them. No
// cuDNN header here: an executable built without cuDNN has the same class, which refuses everything
// (absent/cudnn_attention.cpp).
#pragma once

#include <cuda_runtime.h>

#include <compare>
#include <cstdint>
#include <memory>
#include <string>

#include "core/base/dtype.h"

namespace openmoe::cuda {

// What a plan depends on: causal attention within packed sequences, forward or backward.
struct AttentionProblem {
  std::int64_t sequences = 0;  // at most; those not there have length 0
  std::int64_t length = 0;     // T: of the longest sequence
  std::int64_t heads = 0;      // H
  std::int64_t head_dim = 0;   // Dh
  std::int64_t positions = 0;  // B * T, of all rows
  DType dtype = DType::bf16;   // of q, k, v, o and their gradients
  float scale = 0.0f;
  bool backward = false;

  auto operator<=>(const AttentionProblem&) const = default;
};

// Device memory of a run. q, k, v, o and gradients lie as (B, T, H, Dh), 16-byte aligned; see
// sequences.h for the rest. stats (sequences, H, T) f32: log Z of each softmax, written forward.
struct AttentionData {
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  void* o = nullptr;      // read in the backward
  void* stats = nullptr;  // read in the backward
  const void *lengths = nullptr, *offsets = nullptr;
  const void* d_o = nullptr;
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
  void* workspace = nullptr;  // of the plan's size
};

class CudnnAttention {
 public:
  explicit CudnnAttention(cudaStream_t stream);
  ~CudnnAttention();
  CudnnAttention(const CudnnAttention&) = delete;
  CudnnAttention& operator=(const CudnnAttention&) = delete;

  struct Plan {
    std::string refusal;  // why there is none, in words; "" where there is one
    std::int64_t workspace_bytes = 0;
  };
  // Asks cuDNN at the first call for a problem, on the current device, which takes about a second;
  // afterwards the answer is at hand.
  const Plan& plan(const AttentionProblem& problem);
  // Enqueues a problem that has a plan. Positions outside of sequences are left alone or not, as
  // cuDNN likes.
  void run(const AttentionProblem& problem, const AttentionData& data);

  // "cuDNN 9.19.0"; "cuDNN" where it is not there.
  std::string version() const;
  std::int64_t num_plans() const;  // asked for so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace openmoe::cuda
