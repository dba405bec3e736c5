#include "core/base/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/kernel_shapes.h"
#include "cuda/launch.h"
#include "cuda/scratch_sizes.h"
#include "cuda/sort.h"

namespace openmoe {
namespace cuda {
namespace {

constexpr int kThreads = 256;
// Sorted tokens of one block of the backward.
constexpr int kRun = 32;

// The rows of a vocabulary of `total` ids that are here: V of them from `first` on.
struct TableRows {
  std::int64_t first, V, total;

  __device__ bool knows(std::int32_t id) const { return id >= 0 && id < total; }
  __device__ bool has(std::int32_t id) const { return id >= first && id < first + V; }
};

TableRows rows_of(const Tensor& table, const VocabularyRange& range) {
  const std::int64_t V = table.size(0), total = range.is_whole() ? V : range.total;
  OPENMOE_CHECK(range.first >= 0 && range.first + V <= total, "embedding: rows [", range.first,
                ", ", range.first + V, ") of ", total);
  return {range.first, V, total};
}

// A warp per token. Zero where the row is elsewhere; an id outside the vocabulary gives NaN, which
// reaches the loss, and is reported at the next wait.
// hot: at least 6 blocks per SM
// bytes: 8 of 8 per element of x (f32), 16 in flight per thread
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    embedding_forward_kernel(float* x, const float* table, const std::int32_t* ids, int* bad_id,
                             TableRows rows, std::int64_t N, std::int64_t D) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (std::int64_t n = global_thread() / kWarp; n < N; n += num_global_threads() / kWarp) {
    const std::int32_t id = ids[n];
    const bool known = rows.knows(id), here = rows.has(id);
    if (!known && lane == 0) *bad_id = 1;
    const float elsewhere = known ? 0.0f : __int_as_float(0x7fffffff);
    for (std::int64_t d = lane * kWidth; d < D; d += kWarp * kWidth) {
      float value[kWidth];
      if (here) {
        load(value, table + (id - rows.first) * D + d);
      } else {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) value[j] = elsewhere;
      }
      store(x + n * D + d, value);
    }
  }
}

// The keys to sort: the row of the table, or V for one that is not here.
__global__ void __launch_bounds__(kThreads)
    embedding_keys_kernel(std::int32_t* keys, int* bad_id, const std::int32_t* ids, TableRows rows,
                          std::int64_t N) {
  for (std::int64_t n = global_thread(); n < N; n += num_global_threads()) {
    const std::int32_t id = ids[n];
    if (!rows.knows(id)) *bad_id = 1;
    keys[n] = static_cast<std::int32_t>(rows.has(id) ? id - rows.first : rows.V);
  }
}

// Block (run, columns): sums the gradients of kRun sorted tokens by row of the table, a thread per
// column. A row whose tokens all lie in this run is added to the table here. The sum of a row that
// came from the run before goes to head, whether or not it ends here; the sum of one that begins
// here and goes on, to tail. Tokens that belong to no row here come last, and nobody reads them.
// hot: at least 6 blocks per SM
// bytes: 12 of 12 per element of dx (no token twice), 4 in flight per thread
__global__ void __launch_bounds__(kThreads)
    embedding_runs_kernel(float* dtable, float* head, float* tail, const float* dx,
                          const std::int32_t* table_rows, const std::int32_t* order, std::int64_t N,
                          std::int64_t V, std::int64_t D) {
  const std::int64_t d = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (d >= D) return;
  for (std::int64_t run = blockIdx.x; run * kRun < N; run += gridDim.x) {
    const std::int64_t begin = run * kRun, end = begin + kRun < N ? begin + kRun : N;
    bool from_before = begin > 0 && table_rows[begin - 1] == table_rows[begin];
    float sum = 0.0f;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = table_rows[i];
      if (row >= V) break;
      sum += dx[order[i] * D + d];
      const bool last_of_run = i + 1 == end, goes_on = i + 1 < N && table_rows[i + 1] == row;
      if (goes_on && !last_of_run) continue;
      if (from_before)
        head[run * D + d] = sum;
      else if (goes_on)
        tail[run * D + d] = sum;
      else
        dtable[row * D + d] += sum;
      from_before = false;
      sum = 0.0f;
    }
  }
}

// Adds up the parts of the rows that cross runs; the block of the run where a row begins does it,
// in order.
__global__ void __launch_bounds__(kThreads)
    embedding_join_kernel(float* dtable, const float* head, const float* tail,
                          const std::int32_t* table_rows, std::int64_t N, std::int64_t V,
                          std::int64_t D) {
  const std::int64_t d = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (d >= D) return;
  for (std::int64_t run = blockIdx.x; (run + 1) * kRun < N; run += gridDim.x) {
    const std::int64_t begin = run * kRun, end = begin + kRun;
    const std::int64_t row = table_rows[end - 1];
    const bool begins_here = begin == 0 || table_rows[begin - 1] != row;
    if (row >= V || table_rows[end] != row || !begins_here) continue;
    float sum = tail[run * D + d];
    for (std::int64_t next = run + 1; next * kRun < N && table_rows[next * kRun] == row; ++next)
      sum += head[next * D + d];
    dtable[row * D + d] += sum;
  }
}

struct EmbeddingScratch {
  SortBuffers buffers{};
  float *head = nullptr, *tail = nullptr;  // (runs, D)

  void take(ScratchCursor& cursor, std::int64_t N, std::int64_t D) {
    for (int i = 0; i < 2; ++i) {
      buffers.keys[i] = cursor.take<std::int32_t>(N);
      buffers.order[i] = cursor.take<std::int32_t>(N);
    }
    buffers.counts = cursor.take<std::int32_t>(sort_counts(N));
    head = cursor.take<float>(ceil_div(N, kRun) * D);
    tail = cursor.take<float>(ceil_div(N, kRun) * D);
  }
};

}  // namespace

std::int64_t embedding_backward_scratch(std::int64_t N, std::int64_t D) {
  return carved_bytes([&](ScratchCursor& cursor) { EmbeddingScratch().take(cursor, N, D); });
}

}  // namespace cuda

void CudaOps::do_embedding_forward(Tensor x, Tensor table, Tensor ids,
                                   const VocabularyRange& range) {
  const std::int64_t N = x.size(0), D = x.size(1);
  const cuda::TableRows rows = cuda::rows_of(table, range);
  cuda::with_width<4>(cuda::can_vectorise(4, D, x, table), [&](auto width) {
    cuda::launch(stream_, cuda::blocks_for(N, cuda::kThreads / cuda::kWarp),
                 cuda::embedding_forward_kernel<width.value>, x.as<float>(), table.as<float>(),
                 ids.as<std::int32_t>(), &device_report_->bad_id, rows, N, D);
  });
}

// Tokens share table rows, so they are sorted by them: every row of the table then has one owner,
// which adds its tokens in rising order.
void CudaOps::do_embedding_backward(Tensor dtable, Tensor dx, Tensor ids,
                                    const VocabularyRange& range) {
  const std::int64_t N = dx.size(0), D = dx.size(1);
  const cuda::TableRows rows = cuda::rows_of(dtable, range);
  if (N == 0 || D == 0) return;
  const std::int64_t runs = cuda::ceil_div(N, cuda::kRun);
  cuda::EmbeddingScratch work;
  cuda::carve(scratch_, [&](cuda::ScratchCursor& cursor) { work.take(cursor, N, D); });
  const cuda::SortBuffers& buffers = work.buffers;
  float *const head = work.head, *const tail = work.tail;
  cuda::launch(stream_, cuda::blocks_for(N, cuda::kThreads), cuda::embedding_keys_kernel,
               buffers.keys[0], &device_report_->bad_id, ids.as<std::int32_t>(), rows, N);
  const int sorted = cuda::sort_keys(stream_, buffers, N, rows.V);
  cuda::LaunchShape shape = cuda::blocks_for(runs, 1, cuda::kThreads);
  shape.blocks_y = cuda::ceil_div(D, cuda::kThreads);
  cuda::launch(stream_, shape, cuda::embedding_runs_kernel, dtable.as<float>(), head, tail,
               dx.as<float>(), buffers.keys[sorted], buffers.order[sorted], N, rows.V, D);
  cuda::launch(stream_, shape, cuda::embedding_join_kernel, dtable.as<float>(), head, tail,
               buffers.keys[sorted], N, rows.V, D);
}

}  // namespace openmoe
