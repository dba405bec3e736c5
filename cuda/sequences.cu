#include "cuda/sequences.h"

#include "cuda/launch.h"
#include "cuda/scan.cuh"

namespace openmoe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPlacingThreads = 1024;

// The largest value of the threads before this one, 0 for the first. room has 32 values; ends with
// a barrier.
__device__ inline int block_max_before(int value, int* room) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  int inclusive = value;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int below = __shfl_up_sync(kFullWarp, inclusive, static_cast<unsigned>(offset));
    if (lane >= offset) inclusive = max(inclusive, below);
  }
  if (lane == kWarp - 1) room[warp] = inclusive;
  int before = __shfl_up_sync(kFullWarp, inclusive, 1);
  if (lane == 0) before = 0;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before = max(before, room[w]);
  __syncthreads();
  return before;
}

// A block per row: where its runs begin and end, as far as `max` goes, and how many there are.
__global__ void __launch_bounds__(kThreads)
    find_runs_kernel(Sequences sequences, const std::int32_t* segment_ids, std::int64_t T) {
  __shared__ int room[kWarp + 1];
  const std::int64_t b = blockIdx.x;
  const std::int32_t* const ids = segment_ids + b * T;
  const std::int64_t share = (T + kThreads - 1) / kThreads, first = threadIdx.x * share,
                     last = min(first + share, T);
  int largest = 0, begins = 0;
  for (std::int64_t t = first; t < last; ++t) {
    largest = max(largest, ids[t]);
    begins += ids[t] > 0 && (t == 0 || ids[t - 1] != ids[t]);
  }
  int seen = block_max_before(largest, room);
  const int run_before = block_exclusive_sum(begins, room);
  const int total = room[kWarp];
  bool falls = false;
  int run = run_before - 1;  // of the position before
  for (std::int64_t t = first; t < last; ++t) {
    const int id = ids[t];
    if (id <= 0) continue;
    if (t == 0 || ids[t - 1] != id) {
      falls = falls || id <= seen;
      if (++run < sequences.max)
        sequences.run_begin[b * sequences.max + run] = static_cast<std::int32_t>(t);
    }
    if ((t + 1 == T || ids[t + 1] != id) && run < sequences.max)
      sequences.run_end[b * sequences.max + run] = static_cast<std::int32_t>(t + 1);
    seen = max(seen, id);
  }
  __syncthreads();
  block_exclusive_sum(falls, room);
  if (threadIdx.x == 0) sequences.num_runs[b] = room[kWarp] > 0 ? -1 : total;
}

// One block: which rows fit, and their sequences.
__global__ void __launch_bounds__(kPlacingThreads)
    place_sequences_kernel(Sequences sequences, AttentionShape shape) {
  __shared__ std::int64_t taken;
  if (threadIdx.x == 0) {
    std::int64_t next = 0;
    for (std::int64_t b = 0; b < shape.B; ++b) {
      const std::int64_t runs = sequences.num_runs[b];
      const bool fits = runs >= 0 && next + runs <= sequences.max;
      sequences.first[b] = fits ? static_cast<std::int32_t>(next) : -1;
      if (fits) next += runs;
    }
    taken = next;
  }
  __syncthreads();
  const std::int64_t row = shape.H * shape.Dh;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (std::int64_t b = threadIdx.x / kWarp; b < shape.B; b += kPlacingThreads / kWarp) {
    const int first = sequences.first[b];
    if (first < 0) continue;
    for (int run = lane; run < sequences.num_runs[b]; run += kWarp) {
      const std::int32_t begin = sequences.run_begin[b * sequences.max + run];
      sequences.begin[first + run] = begin;
      sequences.length[first + run] = sequences.run_end[b * sequences.max + run] - begin;
      sequences.offset[first + run] = (b * shape.T + begin) * row;
    }
  }
  for (std::int64_t i = taken + threadIdx.x; i <= sequences.max; i += kPlacingThreads) {
    sequences.offset[i] = shape.B * shape.T * row;
    if (i == sequences.max) continue;
    sequences.begin[i] = 0;
    sequences.length[i] = 0;
  }
}

// The sequence of a real position of one of cuDNN's rows: the last that begins at or before it.
__device__ inline int sequence_at(const Sequences& sequences, std::int64_t b, std::int64_t t) {
  int low = sequences.first[b], high = low + sequences.num_runs[b] - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (sequences.begin[middle] <= t)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// One thread per (b, h, t).
__global__ void __launch_bounds__(kThreads)
    spread_stats_kernel(float* log_z, const float* stats, Sequences sequences,
                        const std::int32_t* segment_ids, AttentionShape shape) {
  const std::int64_t count = shape.B * shape.H * shape.T;
  for (std::int64_t i = global_thread(); i < count; i += num_global_threads()) {
    const std::int64_t t = i % shape.T, h = i / shape.T % shape.H, b = i / shape.T / shape.H;
    if (sequences.first[b] < 0) continue;
    float value = 0.0f;
    if (segment_ids[b * shape.T + t] > 0) {
      const int sequence = sequence_at(sequences, b, t);
      value = stats[(sequence * shape.H + h) * shape.T + t - sequences.begin[sequence]];
    }
    log_z[i] = value;
  }
}

// One thread per (sequence, h, place).
__global__ void __launch_bounds__(kThreads)
    collect_stats_kernel(float* stats, const float* log_z, Sequences sequences,
                         AttentionShape shape) {
  const std::int64_t count = sequences.max * shape.H * shape.T, row = shape.H * shape.Dh;
  for (std::int64_t i = global_thread(); i < count; i += num_global_threads()) {
    const std::int64_t place = i % shape.T, h = i / shape.T % shape.H,
                       sequence = i / shape.T / shape.H;
    float value = 0.0f;
    if (place < sequences.length[sequence]) {
      const std::int64_t b = sequences.offset[sequence] / row / shape.T;
      value = log_z[(b * shape.H + h) * shape.T + sequences.begin[sequence] + place];
    }
    stats[i] = value;
  }
}

struct Cleared {
  __nv_bfloat16* tensors[3];
};

// One block per position.
__global__ void __launch_bounds__(kThreads)
    clear_padding_kernel(Cleared cleared, int num_tensors, Sequences sequences,
                         const std::int32_t* segment_ids, AttentionShape shape) {
  const std::int64_t row = shape.H * shape.Dh;
  for (std::int64_t n = blockIdx.x; n < shape.B * shape.T; n += gridDim.x) {
    if (segment_ids[n] > 0 || sequences.first[n / shape.T] < 0) continue;
    for (int tensor = 0; tensor < num_tensors; ++tensor)
      for (std::int64_t i = threadIdx.x; i < row; i += kThreads)
        cleared.tensors[tensor][n * row + i] = __float2bfloat16_rn(0.0f);
  }
}

}  // namespace

void Sequences::take(ScratchCursor& cursor, const AttentionShape& shape) {
  max = max_sequences(shape.B, shape.T);
  length = cursor.take<std::int32_t>(max);
  offset = cursor.take<std::int64_t>(max + 1);
  begin = cursor.take<std::int32_t>(max);
  first = cursor.take<std::int32_t>(shape.B);
  num_runs = cursor.take<std::int32_t>(shape.B);
  run_begin = cursor.take<std::int32_t>(shape.B * max);
  run_end = cursor.take<std::int32_t>(shape.B * max);
}

void find_sequences(cudaStream_t stream, const Sequences& sequences,
                    const std::int32_t* segment_ids, const AttentionShape& shape) {
  launch(stream, {.blocks = shape.B, .threads = kThreads}, find_runs_kernel, sequences, segment_ids,
         shape.T);
  launch(stream, {.blocks = 1, .threads = kPlacingThreads}, place_sequences_kernel, sequences,
         shape);
}

void finish_forward(cudaStream_t stream, float* log_z, __nv_bfloat16* o, const float* stats,
                    const Sequences& sequences, const std::int32_t* segment_ids,
                    const AttentionShape& shape) {
  launch(stream, blocks_for(shape.B * shape.H * shape.T, kThreads, kThreads), spread_stats_kernel,
         log_z, stats, sequences, segment_ids, shape);
  launch(stream, blocks_for(shape.B * shape.T, 1, kThreads), clear_padding_kernel,
         Cleared{{o, nullptr, nullptr}}, 1, sequences, segment_ids, shape);
}

void collect_stats(cudaStream_t stream, float* stats, const float* log_z,
                   const Sequences& sequences, const AttentionShape& shape) {
  launch(stream, blocks_for(sequences.max * shape.H * shape.T, kThreads, kThreads),
         collect_stats_kernel, stats, log_z, sequences, shape);
}

void clear_padding(cudaStream_t stream, __nv_bfloat16* dq, __nv_bfloat16* dk, __nv_bfloat16* dv,
                   const Sequences& sequences, const std::int32_t* segment_ids,
                   const AttentionShape& shape) {
  launch(stream, blocks_for(shape.B * shape.T, 1, kThreads), clear_padding_kernel,
         Cleared{{dq, dk, dv}}, 3, sequences, segment_ids, shape);
}

}  // namespace openmoe::cuda
