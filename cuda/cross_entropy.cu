// Softmax cross-entropy over a large vocabulary: a block per token. The first pass over the logits
// takes their maximum, its place and the sum of exponentials at once; the second writes the
// gradient in place. One kernel does both, unless ranks share the vocabulary: then they add up
// their sums between the two.
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/kernel_shapes.h"
#include "cuda/launch.h"
#include "cuda/scratch_sizes.h"

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
    // Also the way of a NaN, which makes the sum NaN, as it should. Where nothing but -infinity has
    // been seen, another one adds nothing; a row of nothing else has the sum 0 and the loss NaN.
    state.sum += logit == -INFINITY ? 0.0f : expf(logit - state.largest);
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

// The block's softmax over a row, the same in every thread. `room` has a place per warp.
template <int kWidth>
__device__ inline Softmax row_softmax(const float* row, std::int64_t V, Softmax* room) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  Softmax state = nothing_seen();
  for (std::int64_t v = static_cast<std::int64_t>(threadIdx.x) * kWidth; v < V;
       v += kThreads * kWidth) {
    float value[kWidth];
    load(value, row + v);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) take(state, value[j], v + j);
  }
  state = warp_merge(state);
  if (lane == 0) room[warp] = state;
  __syncthreads();
  return warp_merge(lane < kThreads / kWarp ? room[lane] : nothing_seen());
}

// row = factor e^(row - largest), less `at_target` in column `target`, which may be none of these.
template <int kWidth>
__device__ inline void write_gradient(float* row, float largest, float factor, std::int64_t target,
                                      float at_target, std::int64_t V) {
  for (std::int64_t v = static_cast<std::int64_t>(threadIdx.x) * kWidth; v < V;
       v += kThreads * kWidth) {
    float value[kWidth];
    load(value, row + v);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      value[j] = factor * expf(value[j] - largest);
      if (v + j == target) value[j] -= at_target;
    }
    store(row + v, value);
  }
}

template <int kWidth>
__device__ inline void clear_row(float* row, std::int64_t V) {
  const float zero[kWidth] = {};
  for (std::int64_t v = static_cast<std::int64_t>(threadIdx.x) * kWidth; v < V;
       v += kThreads * kWidth)
    store(row + v, zero);
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
  const std::int64_t i = blockIdx.x;
  float* const row = logits + i * V;
  const float w = weights[i];
  const std::int32_t target = targets[i];
  const bool known = target >= 0 && target < V;
  if (w == 0.0f || !known) {  // nothing of this row counts, whatever its logits
    if (scale > 0.0f) clear_row<kWidth>(row, V);
    if (threadIdx.x == 0) {
      if (!known) *bad_target = 1;
      for (int k = 0; k < 3; ++k) sums[k * n + i] = 0.0;
      if (token_loss != nullptr) token_loss[i] = 0.0f;
    }
    return;
  }
  const Softmax state = row_softmax<kWidth>(row, V, room);
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
  write_gradient<kWidth>(row, state.largest, factor, target, scale * w, V);
}

// The same in two kernels, of columns [first, first + V) of a vocabulary of `total`. sums (n): of
// the columns here, 0 for a row that does not count.
// hot: at least 3 blocks per SM
// bytes: 4 of 4 per element of logits, 16 in flight per thread
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    logit_sums_kernel(LogitSums* sums, const float* logits, const std::int32_t* targets,
                      const float* weights, int* bad_target, VocabularyRange range,
                      std::int64_t V) {
  __shared__ Softmax room[kWarp];
  const std::int64_t i = blockIdx.x, target = targets[i] - range.first;
  const float* const row = logits + i * V;
  const bool known = targets[i] >= 0 && targets[i] < range.total;
  LogitSums result{};
  if (weights[i] != 0.0f && known) {
    const Softmax state = row_softmax<kWidth>(row, V, room);
    result.largest = static_cast<double>(state.largest);
    result.sum = static_cast<double>(state.sum);
    if (target >= 0 && target < V) result.target = static_cast<double>(row[target]);
    // Logits that are all NaN have no largest one.
    result.argmax = range.first + (state.place < V ? state.place : 0);
  }
  if (threadIdx.x != 0) return;
  if (!known) *bad_target = 1;
  sums[i] = result;
}

// `sums` are of the whole vocabulary.
// hot: at least 3 blocks per SM
// bytes: 8 of 8 per element of logits, 16 in flight per thread
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    shared_gradient_kernel(float* logits, const LogitSums* sums, const std::int32_t* targets,
                           const float* weights, std::int64_t first_id, float z_weight, float scale,
                           std::int64_t V) {
  const std::int64_t i = blockIdx.x;
  float* const row = logits + i * V;
  if (weights[i] == 0.0f) return clear_row<kWidth>(row, V);
  const LogitSums z = sums[i];
  const double log_z = z.largest + log(z.sum), w = static_cast<double>(weights[i]);
  const double factor =
      static_cast<double>(scale) * w * (1.0 + 2.0 * static_cast<double>(z_weight) * log_z) / z.sum;
  write_gradient<kWidth>(row, static_cast<float>(z.largest), static_cast<float>(factor),
                         targets[i] - first_id, scale * weights[i], V);
}

__global__ void __launch_bounds__(kSumThreads)
    shared_token_loss_kernel(float* token_loss, const LogitSums* sums, const float* weights,
                             std::int64_t n) {
  for (std::int64_t i = global_thread(); i < n; i += num_global_threads()) {
    const LogitSums z = sums[i];
    const double loss = static_cast<double>(weights[i]) * (z.largest + log(z.sum) - z.target);
    token_loss[i] = weights[i] == 0.0f ? 0.0f : static_cast<float>(loss);
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

std::int64_t cross_entropy_scratch(std::int64_t rows) {
  static_assert(sizeof(LogitSums) >= 3 * sizeof(double));
  return rows * static_cast<std::int64_t>(sizeof(LogitSums));
}

}  // namespace cuda

// The rows' sums go to the host and, over all ranks, back; the losses of a few thousand rows are
// then added up on the host while the device writes the gradient, so that there is one trip in all.
LossSums CudaOps::shared_cross_entropy(Tensor logits, Tensor targets, Tensor weights,
                                       Tensor token_loss, float z_weight, float scale,
                                       const SharedVocabulary& shared) {
  const std::int64_t n = logits.size(0), V = logits.size(1);
  VocabularyRange range = shared.range;
  if (range.is_whole()) range.total = V;
  OPENMOE_CHECK(range.first >= 0 && range.first + V <= range.total,
                "softmax_cross_entropy: columns [", range.first, ", ", range.first + V, ") of ",
                range.total);
  const std::int64_t sums_bytes = n * static_cast<std::int64_t>(sizeof(LogitSums));
  LogitSums* const sums = static_cast<LogitSums*>(scratch_.reserve(cuda::cross_entropy_scratch(n)));
  LogitSums* host_sums = nullptr;
  float* host_weights = nullptr;
  std::int32_t* host_targets = nullptr;
  cuda::carve(pinned_, [&](cuda::ScratchCursor& cursor) {
    host_sums = cursor.take<LogitSums>(n);
    host_weights = cursor.take<float>(n);
    host_targets = cursor.take<std::int32_t>(n);
  });
  const auto to_host = [&](void* to, const void* from, std::int64_t bytes) {
    OPENMOE_CUDA(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost,
                                 stream_));
  };
  const cuda::LaunchShape block_per_row{.blocks = n, .threads = cuda::kThreads};
  const bool vectors = cuda::can_vectorise(4, V, logits);
  cuda::with_width<4>(vectors, [&](auto width) {
    cuda::launch(stream_, block_per_row, cuda::logit_sums_kernel<width.value>, sums,
                 logits.as<float>(), targets.as<std::int32_t>(), weights.as<float>(),
                 &device_report_->bad_target, range, V);
  });
  to_host(host_sums, sums, sums_bytes);
  to_host(host_weights, weights.data, weights.size_bytes());
  to_host(host_targets, targets.data, targets.size_bytes());
  wait_for_report();
  shared.combine({host_sums, static_cast<std::size_t>(n)});
  OPENMOE_CUDA(cudaMemcpyAsync(sums, host_sums, static_cast<std::size_t>(sums_bytes),
                               cudaMemcpyHostToDevice, stream_));
  if (scale > 0.0f)
    cuda::with_width<4>(vectors, [&](auto width) {
      cuda::launch(stream_, block_per_row, cuda::shared_gradient_kernel<width.value>,
                   logits.as<float>(), sums, targets.as<std::int32_t>(), weights.as<float>(),
                   range.first, z_weight, scale, V);
    });
  if (token_loss)
    cuda::launch(stream_, cuda::blocks_for(n, cuda::kSumThreads), cuda::shared_token_loss_kernel,
                 token_loss.as<float>(), sums, weights.as<float>(), n);
  LossSums total;
  for (std::int64_t i = 0; i < n; ++i) {
    if (host_weights[i] == 0.0f) continue;
    const LogitSums& z = host_sums[i];
    const double w = static_cast<double>(host_weights[i]), log_z = z.largest + std::log(z.sum);
    total.cross_entropy += w * (log_z - z.target);
    total.log_z_square += w * log_z * log_z;
    total.correct += z.argmax == host_targets[i] ? w : 0.0;
  }
  return total;
}

LossSums CudaOps::do_softmax_cross_entropy(Tensor logits, Tensor targets, Tensor weights,
                                           Tensor token_loss, float z_weight, float scale,
                                           const SharedVocabulary* shared) {
  const std::int64_t n = logits.size(0), V = logits.size(1);
  if (n == 0) return {};
  if (shared != nullptr)
    return shared_cross_entropy(logits, targets, weights, token_loss, z_weight, scale, *shared);
  double* const sums = static_cast<double*>(scratch_.reserve(cuda::cross_entropy_scratch(n)));
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
