// Blocked matrix products (Goto and van de Geijn 2008, "Anatomy of high-performance matrix
// multiplication"): C is cut into tasks that the threads take one by one; a task packs blocks of A
// and B into buffers of its thread and multiplies them with the register tiles of kernels_body.h.
// Tasks never split k, and k is blocked by its own size alone, so that every element of C is the
// same sum in the same order for any number of threads.
#include "core/cpu/gemm.h"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "core/base/check.h"
#include "core/cpu/kernels.h"
#include "core/cpu/kernels_buffer.h"

namespace openmoe::cpu {
namespace {

// Packed blocks: A kBlockRows x kBlockDepth stays in the second-level cache, B kBlockDepth x
// kBlockCols in the third.
constexpr std::int64_t kBlockDepth = 384;
constexpr std::int64_t kBlockRows = 336;
constexpr std::int64_t kBlockCols = 2048;

// Cost model of a task, in multiply-adds of one vector: packing one value costs kPackCost of them.
constexpr double kPackCost = 4.0;
constexpr double kTaskCost = 2000.0;     // starting a task
constexpr double kSerialLimit = 4000.0;  // below this one thread is faster than waking the others
constexpr std::int64_t kTasksPerThread = 8;  // at most

struct Task {
  std::int64_t job, row, rows, col, cols;
  double cost;
};

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

double task_cost(std::int64_t rows, std::int64_t cols, std::int64_t k, const GemmKernels& kernels) {
  const auto m = static_cast<double>(rows);
  const auto n = static_cast<double>(ceil_div(cols, kernels.panel_cols) * kernels.panel_cols);
  const auto lanes = static_cast<double>(kernels.panel_cols) / 2.0;
  return static_cast<double>(k) * (m * n + kPackCost * (m + n)) / lanes + kTaskCost;
}

struct Split {
  std::int64_t row_pieces = 1, col_pieces = 1;
};

// The split of a single product into pieces that ends first on `threads` threads.
Split split_alone(const GemmJob& job, std::int64_t threads, const GemmKernels& kernels) {
  Split best;
  double best_time = 0.0;
  const std::int64_t limit = threads * kTasksPerThread;
  const std::int64_t max_cols = std::min(limit, ceil_div(job.n, kernels.panel_cols));
  for (std::int64_t col_pieces = 1; col_pieces <= max_cols; ++col_pieces) {
    const std::int64_t max_rows = std::min(limit / col_pieces, ceil_div(job.m, kernels.tile_rows));
    for (std::int64_t row_pieces = 1; row_pieces <= max_rows; ++row_pieces) {
      const double cost =
          task_cost(ceil_div(job.m, row_pieces), ceil_div(job.n, col_pieces), job.k, kernels);
      // Threads seldom run evenly: the last to finish is late by a part of a task.
      const double time =
          (static_cast<double>(ceil_div(row_pieces * col_pieces, threads)) + 0.1) * cost;
      if (best_time == 0.0 || time < best_time) {
        best_time = time;
        best = {row_pieces, col_pieces};
      }
    }
  }
  return best;
}

// The cheapest split of one product of a group into at least `pieces` pieces, as far as its size
// allows.
Split split_for_group(const GemmJob& job, std::int64_t pieces, const GemmKernels& kernels) {
  Split best;
  double best_cost = 0.0;
  const std::int64_t max_rows = ceil_div(job.m, kernels.tile_rows);
  const std::int64_t max_cols = ceil_div(job.n, kernels.panel_cols);
  for (std::int64_t row_pieces = 1; row_pieces <= std::min(pieces, max_rows); ++row_pieces) {
    const std::int64_t col_pieces = std::min(ceil_div(pieces, row_pieces), max_cols);
    const double cost =
        static_cast<double>(row_pieces * col_pieces) *
        task_cost(ceil_div(job.m, row_pieces), ceil_div(job.n, col_pieces), job.k, kernels);
    if (best_cost == 0.0 || cost < best_cost) {
      best_cost = cost;
      best = {row_pieces, col_pieces};
    }
  }
  return best;
}

void append_tasks(std::vector<Task>& tasks, const GemmJob& job, std::int64_t job_idx, Split split,
                  const GemmKernels& kernels) {
  const std::int64_t panels = ceil_div(job.n, kernels.panel_cols);
  for (std::int64_t c = 0; c < split.col_pieces; ++c) {
    const std::int64_t col = panels * c / split.col_pieces * kernels.panel_cols;
    const std::int64_t col_end =
        std::min(job.n, panels * (c + 1) / split.col_pieces * kernels.panel_cols);
    for (std::int64_t r = 0; r < split.row_pieces; ++r) {
      const std::int64_t row = job.m * r / split.row_pieces;
      const std::int64_t rows = job.m * (r + 1) / split.row_pieces - row;
      tasks.push_back(
          {job_idx, row, rows, col, col_end - col, task_cost(rows, col_end - col, job.k, kernels)});
    }
  }
}

const float* element(const GemmOperand& x, std::int64_t row, std::int64_t col) {
  return x.data + (x.transposed ? col * x.ld + row : row * x.ld + col);
}

void clear_rows(float* c, std::int64_t ldc, std::int64_t rows, std::int64_t cols) {
  for (std::int64_t i = 0; i < rows; ++i) std::fill_n(c + i * ldc, cols, 0.0f);
}

// Cuts `size` into the fewest equal blocks of at most `limit`, rounded up to `unit`.
std::int64_t block_size(std::int64_t size, std::int64_t limit, std::int64_t unit) {
  const std::int64_t block = ceil_div(size, ceil_div(size, limit));
  return ceil_div(block, unit) * unit;
}

constexpr std::int64_t kPackedAFloats = kBlockRows * kBlockDepth + kPackSlack;
constexpr std::int64_t kPackedBFloats = kBlockCols * kBlockDepth;

void run_task(const GemmJob& job, const Task& task, bool accumulate, const GemmKernels& kernels,
              float* buffer) {
  float* packed_b = buffer;
  float* packed_a = buffer + kPackedBFloats;
  float* c = job.c + task.row * job.ldc + task.col;
  const std::int64_t col_block = block_size(task.cols, kBlockCols, kernels.panel_cols);
  const std::int64_t row_block = block_size(task.rows, kBlockRows, 1);
  const std::int64_t k_block =
      block_size(job.k, kBlockDepth * kernels.k_per_value, kernels.k_per_value);
  for (std::int64_t j = 0; j < task.cols; j += col_block) {
    const std::int64_t cols = std::min(col_block, task.cols - j);
    for (std::int64_t p = 0; p < job.k; p += k_block) {
      const std::int64_t k = std::min(k_block, job.k - p);
      const std::int64_t depth = ceil_div(k, kernels.k_per_value);
      kernels.pack_b(packed_b, element(job.b, p, task.col + j), job.b.ld, job.b.transposed, k,
                     cols);
      for (std::int64_t i = 0; i < task.rows; i += row_block) {
        const std::int64_t rows = std::min(row_block, task.rows - i);
        kernels.pack_a(packed_a, element(job.a, task.row + i, p), job.a.ld, job.a.transposed, rows,
                       k);
        kernels.multiply(packed_a, packed_b, c + i * job.ldc + j, job.ldc, rows, cols, depth,
                         accumulate || p > 0);
      }
    }
  }
}

void run_tasks(const GemmJob* jobs, const std::vector<Task>& tasks, bool accumulate,
               std::int64_t threads, const GemmKernels& kernels) {
  const auto num_tasks = static_cast<std::int64_t>(tasks.size());
  bool out_of_memory = false;
#pragma omp parallel num_threads( \
    static_cast <int>(std::min(threads, num_tasks))) if (threads > 1 && num_tasks > 1)
  {
    float* buffer = thread_buffer(ThreadBuffer::gemm, kPackedAFloats + kPackedBFloats);
    if (buffer == nullptr) {
#pragma omp atomic write
      out_of_memory = true;
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t t = 0; t < num_tasks; ++t) {
      const Task& task = tasks[static_cast<std::size_t>(t)];
      if (buffer != nullptr) run_task(jobs[task.job], task, accumulate, kernels, buffer);
    }
  }
  if (out_of_memory) throw_out_of_buffers("gemm");
}

// Products without a sum: C is cleared, or left as it is when accumulating.
bool is_empty(const GemmJob& job, bool accumulate) {
  OPENMOE_CHECK(job.m >= 0 && job.n >= 0 && job.k >= 0, "m ", job.m, " n ", job.n, " k ", job.k);
  if (job.m == 0 || job.n == 0) return true;
  if (job.k > 0) return false;
  if (!accumulate) clear_rows(job.c, job.ldc, job.m, job.n);
  return true;
}

}  // namespace

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, GemmOperand a, GemmOperand b, float* c,
          std::int64_t ldc, bool accumulate) {
  const GemmJob job{m, n, k, a, b, c, ldc};
  grouped_gemm(&job, 1, accumulate);
}

void grouped_gemm(const GemmJob* jobs, std::int64_t num_jobs, bool accumulate) {
  const GemmKernels& kernels = kernels_for(cpu_isa()).f32;
  thread_local std::vector<Task> tasks;  // keeps its memory
  tasks.clear();
  double total_cost = 0.0;
  for (std::int64_t g = 0; g < num_jobs; ++g) {
    const GemmJob& job = jobs[g];
    if (!is_empty(job, accumulate)) total_cost += task_cost(job.m, job.n, job.k, kernels);
  }
  std::int64_t threads = omp_in_parallel() ? 1 : omp_get_max_threads();
  if (total_cost < kSerialLimit) threads = 1;
  const double target = total_cost / static_cast<double>(threads * kTasksPerThread / 2);
  for (std::int64_t g = 0; g < num_jobs; ++g) {
    const GemmJob& job = jobs[g];
    if (job.m == 0 || job.n == 0 || job.k == 0) continue;
    Split split;
    if (threads > 1) {
      const double pieces = task_cost(job.m, job.n, job.k, kernels) / target;
      split = num_jobs == 1 ? split_alone(job, threads, kernels)
                            : split_for_group(job, static_cast<std::int64_t>(pieces) + 1, kernels);
    }
    append_tasks(tasks, job, g, split, kernels);
  }
  if (tasks.empty()) return;
  // Largest first, so that the threads end together.
  std::sort(tasks.begin(), tasks.end(), [](const Task& x, const Task& y) {
    if (x.cost != y.cost) return x.cost > y.cost;
    if (x.job != y.job) return x.job < y.job;
    return x.col != y.col ? x.col < y.col : x.row < y.row;
  });
  run_tasks(jobs, tasks, accumulate, threads, kernels);
}

}  // namespace openmoe::cpu
