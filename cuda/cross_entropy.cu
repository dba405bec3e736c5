// Softmax cross-entropy over a large vocabulary: a block per token. The first pass over the logits
// takes their maximum, its place and the sum of exponentials at once; the second writes the
// gradient in place.
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/kernel_shapes.h"
#include "cuda/launch.h"

namespace openmoe {
namespace cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kSumThreads = 256;

// Of the logits a thread has seen: the largest, where it is first, and the sum of e^(logit -
// largest).
struct Softmax {
  float largest;
  float sum;
  std::int64_t place;
};

__device__ inline Softmax nothing_seen() {
  return {-INFINITY, 0.0f, INT64_MAX};
}

__device__ inline void take(Softmax& state, float logit, std::int64_t place) {
  if (logit > state.largest) {
    state.sum = state.sum * expf(state.largest - logit) + 1.0f;
    state.largest = logit;
    state.place = place;
  } else {
    // Also the way of a NaN and, where all logits so far are -infinity, of another one: both make
    // the sum NaN, as they should.
    state.sum += expf(logit - state.largest);
    if (logit == state.largest && place < state.place) state.place = place;
  }
}

__device__ inline Softmax merge(const Softmax& a, const Softmax& b) {
  Softmax result{};
  result.largest = fmaxf(a.largest, b.largest);
  // A thread without logits has -infinity and sum 0.
  const float a_sum = a.sum == 0.0f ? 0.0f : a.sum * expf(a.largest - result.largest);
  const float b_sum = b.sum == 0.0f ? 0.0f : b.sum * expf(b.largest - result.largest);
  result.sum = a_sum + b_sum;
  const std::int64_t a_place = a.largest == result.largest ? a.place : INT64_MAX;
  const std::int64_t b_place = b.largest == result.largest ? b.place : INT64_MAX;
  result.place = a_place < b_place ? a_place : b_place;
  return result;
}

// Every lane gets the same result.
__device__ inline Softmax warp_merge(Softmax state) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    Softmax other{};
    other.largest = __shfl_xor_sync(kFullWarp, state.largest, offset);
    other.sum = __shfl_xor_sync(kFullWarp, state.sum, offset);
    other.place = __shfl_xor_sync(kFullWarp, static_cast<long long>(state.place), offset);
    // Of the two halves the lower always comes first, so that both compute the same bits.
    state =
        (static_cast<int>(threadIdx.x) & offset) == 0 ? merge(state, other) : merge(other, state);
  }
  return state;
}

// For one token, with p = softmax: d(log Z) = p, so dlogits = scale w ((1 + 2 z_weight log Z) p -
// onehot(target)). sums (3, n): cross_entropy, log_z_square and correct of each token.
// hot: at least 3 blocks per SM
// bytes: 12 of 8 per element of logits (a row outgrows the cache), 16 in flight per thread
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(float* logits, double* sums, float* token_loss,
                         const std::int32_t* targets, const float* weights, int* bad_target,
                         float z_weight, float scale, std::int64_t n, std::int64_t V) {
  __shared__ Softmax room[kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t i = blockIdx.x, first = static_cast<std::int64_t>(threadIdx.x) * kWidth,
                     stride = kThreads * kWidth;
  float* const row = logits + i * V;
  const float w = weights[i];
  const std::int32_t target = targets[i];
  const bool known = target >= 0 && target < V;
  if (w == 0.0f || !known) {  // nothing of this row counts, whatever its logits
    if (scale > 0.0f) {
      const float zero[kWidth] = {};
      for (std::int64_t v = first; v < V; v += stride) store(row + v, zero);
    }
    if (threadIdx.x == 0) {
      if (!known) *bad_target = 1;
      for (int k = 0; k < 3; ++k) sums[k * n + i] = 0.0;
      if (token_loss != nullptr) token_loss[i] = 0.0f;
    }
    return;
  }
  Softmax state = nothing_seen();
  for (std::int64_t v = first; v < V; v += stride) {
    float value[kWidth];
    load(value, row + v);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) take(state, value[j], v + j);
  }
  state = warp_merge(state);
  if (lane == 0) room[warp] = state;
  __syncthreads();
  state = warp_merge(lane < kThreads / kWarp ? room[lane] : nothing_seen());
  const float log_sum = logf(state.sum);
  const double log_z = static_cast<double>(state.largest) + static_cast<double>(log_sum);
  const float target_logit = row[target];
  __syncthreads();  // everyone has the target's logit before its owner overwrites it
  if (threadIdx.x == 0) {
    const double weight = static_cast<double>(w);
    const double loss = weight * (log_z - static_cast<double>(target_logit));
    sums[i] = loss;
    sums[n + i] = weight * log_z * log_z;
    sums[2 * n + i] = state.place == target ? weight : 0.0;
    if (token_loss != nullptr) token_loss[i] = static_cast<float>(loss);
  }
  if (scale <= 0.0f) return;
  const float factor = scale * w * (1.0f + 2.0f * z_weight * static_cast<float>(log_z)) / state.sum;
  for (std::int64_t v = first; v < V; v += stride) {
    float value[kWidth];
    load(value, row + v);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      value[j] = factor * expf(value[j] - state.largest);
      if (v + j == target) value[j] -= scale * w;
    }
    store(row + v, value);
  }
}

// totals[k] = sum of sums[k, :]. One block.
__global__ void __launch_bounds__(kSumThreads)
    loss_sums_kernel(double* totals, const double* sums, std::int64_t n) {
  __shared__ double room[3][kWarp];
  for (int k = 0; k < 3; ++k) {
    double sum = 0.0;
    for (std::int64_t i = threadIdx.x; i < n; i += kSumThreads) sum += sums[k * n + i];
    sum = block_sum(sum, room[k]);
    if (threadIdx.x == 0) totals[k] = sum;
  }
}

}  // namespace
}  // namespace cuda

LossSums CudaOps::do_softmax_cross_entropy(Tensor logits, Tensor targets, Tensor weights,
                                           Tensor token_loss, float z_weight, float scale,
                                           const SharedVocabulary* shared) {
  OPENMOE_CHECK(shared == nullptr, "a vocabulary shared by devices");
  const std::int64_t n = logits.size(0), V = logits.size(1);
  if (n == 0) return {};
  double* const sums =
      static_cast<double*>(scratch_.reserve(3 * n * static_cast<std::int64_t>(sizeof(double))));
  cuda::with_width<4>(cuda::can_vectorise(4, V, logits), [&](auto width) {
    cuda::launch(stream_, {.blocks = n, .threads = cuda::kThreads},
                 cuda::cross_entropy_kernel<width.value>, logits.as<float>(), sums,
                 token_loss ? token_loss.as<float>() : nullptr, targets.as<std::int32_t>(),
                 weights.as<float>(), &device_report_->bad_target, z_weight, scale, n, V);
  });
  cuda::launch(stream_, {.blocks = 1, .threads = cuda::kSumThreads}, cuda::loss_sums_kernel,
               device_report_->values, sums, n);
  const Report& report = wait_for_report();
  return {.cross_entropy = report.values[0],
          .log_z_square = report.values[1],
          .correct = report.values[2]};
}

}  // namespace openmoe
