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
constexpr std::int64_t kBlockDepth = 512;
constexpr std::int64_t kBlockRows = 280;
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
template <class Job>
Split split_alone(const Job& job, std::int64_t threads, const GemmKernels& kernels) {
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
template <class Job>
Split split_for_group(const Job& job, std::int64_t pieces, const GemmKernels& kernels) {
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

template <class Job>
void append_tasks(std::vector<Task>& tasks, const Job& job, std::int64_t job_idx, Split split,
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

template <class Element>
const Element* element(const GemmOperandT<Element>& x, std::int64_t row, std::int64_t col) {
  return x.data + (x.transposed ? col * x.ld + row : row * x.ld + col);
}

template <class Output>
void clear_rows(Output* c, std::int64_t ldc, std::int64_t rows, std::int64_t cols) {
  for (std::int64_t i = 0; i < rows; ++i) std::fill_n(c + i * ldc, cols, Output());
}

// Cuts `size` into the fewest equal blocks of at most `limit`, rounded up to `unit`.
std::int64_t block_size(std::int64_t size, std::int64_t limit, std::int64_t unit) {
  const std::int64_t block = ceil_div(size, ceil_div(size, limit));
  return ceil_div(block, unit) * unit;
}

// Scratch of a thread: packed B, packed A, and sums of a task whose C is bf16.
constexpr std::int64_t kPackedBFloats = kBlockCols * kBlockDepth;
constexpr std::int64_t kPackedAFloats = kBlockRows * kBlockDepth + kPackSlack;
constexpr std::int64_t kSumFloats = std::int64_t{1} << 20;

template <class Output>
constexpr std::int64_t scratch_floats() {
  return kPackedBFloats + kPackedAFloats + (sizeof(Output) == sizeof(float) ? 0 : kSumFloats);
}

// Columns [task.col + col, + cols) of the task's rows of C, which lie at `c`.
template <class Job>
void multiply_columns(const Job& job, const Task& task, std::int64_t col, std::int64_t cols,
                      float* c, std::int64_t ldc, bool accumulate, const GemmKernels& kernels,
                      float* scratch) {
  const std::int64_t row_block = block_size(task.rows, kBlockRows, 1);
  const std::int64_t unit = kernels.k_per_value;
  const std::int64_t k_block = block_size(job.k, kBlockDepth * unit, unit);
  BlockProduct product{};
  product.packed_b = scratch;
  product.packed_a = scratch + kPackedBFloats;
  product.cols = cols;
  product.ldc = ldc;
  for (std::int64_t p = 0; p < job.k; p += k_block) {
    product.k = std::min(k_block, job.k - p);
    product.accumulate = accumulate || p > 0;
    product.b = {element(job.b, p, task.col + col), job.b.ld, job.b.transposed};
    for (std::int64_t i = 0; i < task.rows; i += row_block) {
      product.rows = std::min(row_block, task.rows - i);
      product.a = {element(job.a, task.row + i, p), job.a.ld, job.a.transposed};
      product.pack_b = i > 0 ? PackB::reuse : row_block < task.rows ? PackB::keep : PackB::discard;
      product.c = c + i * ldc;
      kernels.multiply(product);
    }
  }
}

template <class Element>
void run_task(const GemmJobT<Element, float>& job, const Task& task, bool accumulate,
              const GemmKernels& kernels, const ConvertKernels&, float* scratch) {
  const std::int64_t col_block = block_size(task.cols, kBlockCols, kernels.panel_cols);
  for (std::int64_t j = 0; j < task.cols; j += col_block) {
    multiply_columns(job, task, j, std::min(col_block, task.cols - j),
                     job.c + task.row * job.ldc + task.col + j, job.ldc, accumulate, kernels,
                     scratch);
  }
}

template <class Element>
void run_task(const GemmJobT<Element, BFloat16>& job, const Task& task, bool accumulate,
              const GemmKernels& kernels, const ConvertKernels& convert, float* scratch) {
  float* sums = scratch + kPackedBFloats + kPackedAFloats;
  const std::int64_t fitting = kSumFloats / task.rows / kernels.panel_cols * kernels.panel_cols;
  const std::int64_t col_block =
      block_size(task.cols, std::min(kBlockCols, fitting), kernels.panel_cols);
  for (std::int64_t j = 0; j < task.cols; j += col_block) {
    const std::int64_t cols = std::min(col_block, task.cols - j);
    BFloat16* c = job.c + task.row * job.ldc + task.col + j;
    if (accumulate) convert.to_f32(sums, col_block, c, job.ldc, task.rows, cols);
    multiply_columns(job, task, j, cols, sums, col_block, accumulate, kernels, scratch);
    convert.to_bf16(c, job.ldc, sums, col_block, task.rows, cols);
  }
}

template <class Element, class Output>
void run_tasks(const GemmJobT<Element, Output>* jobs, const std::vector<Task>& tasks,
               bool accumulate, std::int64_t threads, const GemmKernels& kernels,
               const ConvertKernels& convert) {
  const auto num_tasks = static_cast<std::int64_t>(tasks.size());
  const int team = static_cast<int>(std::min(threads, num_tasks));
  bool out_of_memory = false;
#pragma omp parallel num_threads(team) if (team > 1)
  {
    float* scratch = thread_buffer(ThreadBuffer::gemm, scratch_floats<Output>());
    if (scratch == nullptr) {
#pragma omp atomic write
      out_of_memory = true;
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t t = 0; t < num_tasks; ++t) {
      const Task& task = tasks[static_cast<std::size_t>(t)];
      if (scratch != nullptr) run_task(jobs[task.job], task, accumulate, kernels, convert, scratch);
    }
  }
  if (out_of_memory) throw_out_of_buffers("gemm");
}

// Products without a sum: C is cleared, or left as it is when accumulating.
template <class Job>
bool is_empty(const Job& job, bool accumulate) {
  OPENMOE_CHECK(job.m >= 0 && job.n >= 0 && job.k >= 0, "m ", job.m, " n ", job.n, " k ", job.k);
  if (job.m == 0 || job.n == 0) return true;
  if (job.k > 0) return false;
  if (!accumulate) clear_rows(job.c, job.ldc, job.m, job.n);
  return true;
}

// Fills `tasks`, the largest first, so that the threads end together; returns the number of threads
// to use.
template <class Job>
std::int64_t plan(std::vector<Task>& tasks, const Job* jobs, std::int64_t num_jobs, bool accumulate,
                  const GemmKernels& kernels, std::int64_t max_rows) {
  tasks.clear();
  double total_cost = 0.0;
  for (std::int64_t g = 0; g < num_jobs; ++g) {
    const Job& job = jobs[g];
    if (!is_empty(job, accumulate)) total_cost += task_cost(job.m, job.n, job.k, kernels);
  }
  const bool alone = omp_in_parallel() || total_cost < kSerialLimit;
  const std::int64_t threads = alone ? 1 : omp_get_max_threads();
  const double target = total_cost / (0.5 * static_cast<double>(threads * kTasksPerThread));
  for (std::int64_t g = 0; g < num_jobs; ++g) {
    const Job& job = jobs[g];
    if (job.m == 0 || job.n == 0 || job.k == 0) continue;
    Split split;
    if (threads > 1) {
      const double pieces = task_cost(job.m, job.n, job.k, kernels) / target;
      split = num_jobs == 1 ? split_alone(job, threads, kernels)
                            : split_for_group(job, static_cast<std::int64_t>(pieces) + 1, kernels);
    }
    split.row_pieces = std::max(split.row_pieces, ceil_div(job.m, max_rows));
    append_tasks(tasks, job, g, split, kernels);
  }
  std::sort(tasks.begin(), tasks.end(), [](const Task& x, const Task& y) {
    if (x.cost != y.cost) return x.cost > y.cost;
    if (x.job != y.job) return x.job < y.job;
    return x.col != y.col ? x.col < y.col : x.row < y.row;
  });
  return threads;
}

template <class Element, class Output>
void run(const GemmJobT<Element, Output>* jobs, std::int64_t num_jobs, bool accumulate) {
  const CpuKernels& table = kernels_for(cpu_isa());
  const GemmKernels& kernels = sizeof(Element) == sizeof(float) ? table.f32 : table.bf16;
  // A task with bf16 output keeps at least one panel of f32 sums.
  const std::int64_t max_rows =
      sizeof(Output) == sizeof(float) ? INT64_MAX / 2 : kSumFloats / (4 * kernels.panel_cols);
  thread_local std::vector<Task> tasks;  // keeps its memory
  const std::int64_t threads = plan(tasks, jobs, num_jobs, accumulate, kernels, max_rows);
  if (!tasks.empty()) run_tasks(jobs, tasks, accumulate, threads, kernels, table.convert);
}

template <class Element, class Output>
void run_one(std::int64_t m, std::int64_t n, std::int64_t k, GemmOperandT<Element> a,
             GemmOperandT<Element> b, Output* c, std::int64_t ldc, bool accumulate) {
  const GemmJobT<Element, Output> job{m, n, k, a, b, c, ldc};
  run(&job, 1, accumulate);
}

}  // namespace

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, GemmOperand a, GemmOperand b, float* c,
          std::int64_t ldc, bool accumulate) {
  run_one(m, n, k, a, b, c, ldc, accumulate);
}

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, GemmOperandBf16 a, GemmOperandBf16 b,
          float* c, std::int64_t ldc, bool accumulate) {
  run_one(m, n, k, a, b, c, ldc, accumulate);
}

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, GemmOperandBf16 a, GemmOperandBf16 b,
          BFloat16* c, std::int64_t ldc, bool accumulate) {
  run_one(m, n, k, a, b, c, ldc, accumulate);
}

void grouped_gemm(const GemmJob* jobs, std::int64_t num_jobs, bool accumulate) {
  run(jobs, num_jobs, accumulate);
}

void grouped_gemm(const GemmJobT<BFloat16, float>* jobs, std::int64_t num_jobs, bool accumulate) {
  run(jobs, num_jobs, accumulate);
}

void grouped_gemm(const GemmJobT<BFloat16, BFloat16>* jobs, std::int64_t num_jobs,
                  bool accumulate) {
  run(jobs, num_jobs, accumulate);
}

}  // namespace openmoe::cpu
