// The two graphs of causal attention that cuDNN is asked to compute, through NVIDIA's C++ graph API
// (cudnn-frontend): packed sequences ("THD"). Every sequence is a run of positions of a row; where
// it begins and how long it is are tensors on the device, so one plan serves all batches of a
// shape. The frontend's headers, which take a minute to compile, are in the .cpp alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "cuda/cudnn_attention.h"

struct cudnnContext;

namespace openmoe::cuda {

// A cuDNN handle whose work goes to `stream`.
class CudnnHandle {
 public:
  CudnnHandle() = default;
  ~CudnnHandle();
  CudnnHandle(const CudnnHandle&) = delete;
  CudnnHandle& operator=(const CudnnHandle&) = delete;

  // "" or why there is none. cuDNN must be open (library.h).
  std::string open(cudaStream_t stream);
  cudnnContext* get() const { return handle_; }

 private:
  cudnnContext* handle_ = nullptr;
};

// 91900 for 9.19.0
std::int64_t cudnn_version();

// Identifiers of the tensors when a graph is executed. All are on the device.
//   q, k, v, o and gradients: (B, T, H, Dh); a sequence's first element is offsets[i]
//   stats: (sequences, H, T) f32, log Z of the softmax by sequence, head and place in it
//   lengths: (sequences) i32; offsets: (sequences + 1) i64, in elements
enum AttentionTensor : std::int64_t {
  kQ = 1,
  kK,
  kV,
  kO,
  kStats,
  kLengths,
  kOffsets,
  kGradO,
  kGradQ,
  kGradK,
  kGradV
};

// The device a graph is for: that of `handle`, or one that need not be here.
struct AttentionTarget {
  cudnnContext* handle = nullptr;
  std::string device_properties;  // cuDNN's JSON of them, where there is no handle
  int sm_version = 0;             // 90; 0: of the device
};

// The backward is demanded to be deterministic.
class AttentionGraph {
 public:
  AttentionGraph(const AttentionProblem& problem, const AttentionTarget& target);
  ~AttentionGraph();
  AttentionGraph(const AttentionGraph&) = delete;
  AttentionGraph& operator=(const AttentionGraph&) = delete;

  // Each returns "" or why not, in cuDNN's words; in this order.
  std::string lower();    // checks the graph and turns it into cuDNN's descriptors
  std::string find();     // asks for engines that can compute it
  std::string compile();  // the best one's kernels
  std::string execute(std::unordered_map<std::int64_t, void*>& tensors, void* workspace) const;

  std::int64_t workspace_bytes() const;  // of what was compiled
  std::string engine() const;            // "eng2_k24=7"

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace openmoe::cuda
