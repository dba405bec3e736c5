// The router: probabilities and choices per token, queues and sums per group. Small beside the
// products around it; nothing waits for another block, and every sum has a fixed order.
#include <algorithm>
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace openmoe {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Groups that a grid has blocks for, each of which strides over the rest.
constexpr std::int64_t kMaxGroupBlocks = 512;

// RouterOutput without its shapes.
struct RouterPointers {
  float *prob, *log_z, *gate, *group_picks, *group_prob, *group_routed, *group_z;
  std::int32_t *choice, *slot;
};

RouterPointers pointers_of(const RouterOutput& out) {
  return {out.prob.as<float>(),        out.log_z.as<float>(),         out.gate.as<float>(),
          out.group_picks.as<float>(), out.group_prob.as<float>(),    out.group_routed.as<float>(),
          out.group_z.as<float>(),     out.choice.as<std::int32_t>(), out.slot.as<std::int32_t>()};
}

struct Candidate {
  float logit;
  int expert;
};

// Higher logit first, ties to the lower index.
__device__ inline bool before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.expert < b.expert);
}

// Takes `fresh` into the best two.
__device__ inline void offer(Candidate& first, Candidate& second, const Candidate& fresh) {
  if (before(fresh, first)) {
    second = first;
    first = fresh;
  } else if (before(fresh, second)) {
    second = fresh;
  }
}

__device__ inline Candidate from_lane(const Candidate& mine, int offset) {
  return {__shfl_xor_sync(kFullWarp, mine.logit, offset),
          __shfl_xor_sync(kFullWarp, mine.expert, offset)};
}

// A warp per token: softmax in f32, best two experts, gates. A NaN logit counts as -infinity in the
// choice, which keeps the indices valid; it reaches the loss through prob.
// hot: at least 6 blocks per SM
// bytes: 8 of 8 per element of logits, 4 in flight per thread, 8 more from L2
__global__ void __launch_bounds__(kThreads)
    router_token_kernel(RouterPointers out, const float* logits, const std::int32_t* routed,
                        bool normalize, std::int64_t N, std::int64_t E) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, num_experts = static_cast<int>(E);
  for (std::int64_t n = global_thread() / kWarp; n < N; n += num_global_threads() / kWarp) {
    const float* const row = logits + n * E;
    Candidate first{-INFINITY, INT32_MAX}, second{-INFINITY, INT32_MAX};
    for (int e = lane; e < num_experts; e += kWarp) {
      const float logit = row[e];
      offer(first, second, {logit == logit ? logit : -INFINITY, e});
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const Candidate other_first = from_lane(first, offset),
                      other_second = from_lane(second, offset);
      offer(first, second, other_first);
      offer(first, second, other_second);
    }
    float sum = 0.0f;
    for (int e = lane; e < num_experts; e += kWarp) sum += expf(row[e] - first.logit);
    sum = warp_sum(sum);
    const float inverse = 1.0f / sum;
    for (int e = lane; e < num_experts; e += kWarp)
      out.prob[n * E + e] = expf(row[e] - first.logit) * inverse;
    if (lane != 0) continue;
    const float p1 = expf(row[first.expert] - first.logit) * inverse;
    const float p2 = expf(row[second.expert] - first.logit) * inverse;
    const float divisor = normalize ? p1 + p2 : 1.0f;
    out.log_z[n] = first.logit + logf(sum);
    out.choice[2 * n] = first.expert;
    out.choice[2 * n + 1] = second.expert;
    out.gate[2 * n] = p1 / divisor;
    out.gate[2 * n + 1] = p2 / divisor;
    if (routed[n] == 0) {
      out.slot[2 * n] = -1;
      out.slot[2 * n + 1] = -1;
    }
  }
}

// Block (expert, group): walks the group's first choices, then its second ones, kThreads at a time,
// and gives those that chose this expert the next places of its queue. Also the sum of the expert's
// probability over the group.
// hot: at least 6 blocks per SM
// bytes: 4 of 4 per element of prob, 4 in flight per thread, 56 more from L2
__global__ void __launch_bounds__(kThreads)
    router_queue_kernel(RouterPointers out, const std::int32_t* routed, std::int64_t groups,
                        std::int64_t G, std::int64_t E, std::int64_t capacity) {
  __shared__ int votes[2][kWarps];
  __shared__ float room[kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const int expert = static_cast<int>(blockIdx.x);
  for (std::int64_t group = blockIdx.y; group < groups; group += gridDim.y) {
    const std::int64_t first_token = group * G;
    std::int64_t filled = 0;
    int turn = 0;
    for (int k = 0; k < 2; ++k)
      for (std::int64_t begin = 0; begin < G; begin += kThreads) {
        const std::int64_t n = first_token + begin + threadIdx.x;
        const bool inside = begin + threadIdx.x < G;
        const bool mine = inside && routed[n] != 0 && out.choice[2 * n + k] == expert;
        const unsigned ballot = __ballot_sync(kFullWarp, mine);
        if (lane == 0) votes[turn][warp] = __popc(ballot);
        __syncthreads();
        int below = __popc(ballot & ((1u << lane) - 1u)), total = 0;
        for (int i = 0; i < kWarps; ++i) {
          if (i < warp) below += votes[turn][i];
          total += votes[turn][i];
        }
        const std::int64_t place = filled + below;
        if (mine) out.slot[2 * n + k] = place < capacity ? static_cast<std::int32_t>(place) : -1;
        filled += total;
        turn = 1 - turn;
      }
    float prob = 0.0f;
    for (std::int64_t i = threadIdx.x; i < G; i += kThreads)
      if (routed[first_token + i] != 0) prob += out.prob[(first_token + i) * E + expert];
    prob = block_sum(prob, room);
    if (threadIdx.x == 0) {
      out.group_picks[group * E + expert] = static_cast<float>(filled);
      out.group_prob[group * E + expert] = prob;
    }
    __syncthreads();  // votes and room are used again
  }
}

// A block per group.
__global__ void __launch_bounds__(kThreads)
    router_group_kernel(RouterPointers out, const std::int32_t* routed, std::int64_t G) {
  __shared__ float room[2][kWarp];
  const std::int64_t group = blockIdx.x;
  float count = 0.0f, z = 0.0f;
  for (std::int64_t i = threadIdx.x; i < G; i += kThreads) {
    const std::int64_t n = group * G + i;
    if (routed[n] == 0) continue;
    count += 1.0f;
    z += out.log_z[n] * out.log_z[n];
  }
  count = block_sum(count, room[0]);
  z = block_sum(z, room[1]);
  if (threadIdx.x == 0) {
    out.group_routed[group] = count;
    out.group_z[group] = z;
  }
}

// total = sum of dgate gate + scale.balance * sum over groups of E sum_e f_e P_e + scale.z * sum of
// log_z^2, where f is a constant and P_e = group_prob / routed. With q_e = d total / d prob_e:
// dlogit_e = prob_e (q_e - sum_j q_j prob_j), plus 2 scale.z log_z prob_e. A normalised gate g_k =
// p_k / (p_1 + p_2) passes on (dg_k - sum_j dg_j g_j) / (p_1 + p_2).
// hot: at least 5 blocks per SM
// bytes: 8 of 8 per element of prob, 4 in flight per thread, 4 more from L2
__global__ void __launch_bounds__(kThreads)
    router_backward_kernel(float* dlogits, const float* dgate, const std::int32_t* routed,
                           RouterPointers saved, RouterLossScale scale, bool normalize,
                           std::int64_t N, std::int64_t G, std::int64_t E) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (std::int64_t n = global_thread() / kWarp; n < N; n += num_global_threads() / kWarp) {
    float* const out = dlogits + n * E;
    if (routed[n] == 0) {
      for (std::int64_t e = lane; e < E; e += kWarp) out[e] = 0.0f;
      continue;
    }
    const float* const p = saved.prob + n * E;
    const float* const picks = saved.group_picks + n / G * E;
    const float count = saved.group_routed[n / G];
    const float balance = scale.balance * static_cast<float>(E) / (count * count);
    const std::int32_t first = saved.choice[2 * n], second = saved.choice[2 * n + 1];
    float dfirst = dgate[2 * n], dsecond = dgate[2 * n + 1];
    if (normalize) {
      const float mean = dfirst * saved.gate[2 * n] + dsecond * saved.gate[2 * n + 1];
      const float divisor = p[first] + p[second];
      dfirst = (dfirst - mean) / divisor;
      dsecond = (dsecond - mean) / divisor;
    }
    const auto q_of = [&](std::int64_t e) {
      return balance * picks[e] + (e == first ? dfirst : 0.0f) + (e == second ? dsecond : 0.0f);
    };
    float mean = 0.0f;
    for (std::int64_t e = lane; e < E; e += kWarp) mean += q_of(e) * p[e];
    mean = warp_sum(mean);
    const float z = 2.0f * scale.z * saved.log_z[n];
    for (std::int64_t e = lane; e < E; e += kWarp) out[e] = p[e] * (q_of(e) - mean + z);
  }
}

}  // namespace
}  // namespace cuda

void CudaOps::do_router_forward(const RouterOutput& out, Tensor logits, Tensor routed,
                                const RouterOptions& options) {
  const std::int64_t N = logits.size(0), E = logits.size(1), G = options.group_tokens,
                     groups = N / G;
  const cuda::RouterPointers pointers = cuda::pointers_of(out);
  const std::int32_t* const real = routed.as<std::int32_t>();
  cuda::launch(stream_, cuda::blocks_for(N, cuda::kWarps), cuda::router_token_kernel, pointers,
               logits.as<float>(), real, options.normalize_gates, N, E);
  cuda::launch(
      stream_,
      {.blocks = E, .threads = cuda::kThreads, .blocks_y = std::min(groups, cuda::kMaxGroupBlocks)},
      cuda::router_queue_kernel, pointers, real, groups, G, E, options.capacity);
  cuda::launch(stream_, {.blocks = groups, .threads = cuda::kThreads}, cuda::router_group_kernel,
               pointers, real, G);
}

void CudaOps::do_router_backward(Tensor dlogits, Tensor dgate, Tensor routed,
                                 const RouterOutput& saved, const RouterLossScale& scale,
                                 const RouterOptions& options) {
  const std::int64_t N = dlogits.size(0), E = dlogits.size(1);
  cuda::launch(stream_, cuda::blocks_for(N, cuda::kWarps), cuda::router_backward_kernel,
               dlogits.as<float>(), dgate.as<float>(), routed.as<std::int32_t>(),
               cuda::pointers_of(saved), scale, options.normalize_gates, N, options.group_tokens,
               E);
}

}  // namespace openmoe
