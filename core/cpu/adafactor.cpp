// Adafactor (Shazeer and Stern 2018) in the fewest passes over memory: statistics from g and w; the
// size of the update from g; then the update itself. The third needs the result of the second
// (clipping), the second that of the first (column means). Ranks that share a matrix add up their
// sums, in f64, after each of the first two.
#include <algorithm>
#include <cmath>

#include "core/cpu/cpu_ops.h"
#include "core/cpu/kernels.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"

namespace openmoe {
namespace {

// Row blocks of one matrix, at most; each covers at least kMinRows rows.
constexpr std::int64_t kMaxBlocks = 64;
constexpr std::int64_t kMinRows = 16;
// Rows whose squares are added up per column in f32 before they go into f64.
constexpr std::int64_t kFloatRows = 32;

// With decay 0, the first step, the old state is not read: it may hold anything.
float running_mean(float old_value, double fresh, float decay) {
  if (decay == 0.0f) return static_cast<float>(fresh);
  const double keep = static_cast<double>(decay);
  return static_cast<float>(keep * static_cast<double>(old_value) + (1.0 - keep) * fresh);
}

// The factor of u in w -= factor * u: learning rate, size of the parameter, clipping by the RMS of
// the update.
double update_factor(const AdafactorScalars& scalars, double w_square, double u_square,
                     double size) {
  const double rms_w =
      std::max(std::sqrt(w_square / size), static_cast<double>(scalars.epsilon_scale));
  const double clip =
      std::max(1.0, std::sqrt(u_square / size) / static_cast<double>(scalars.clip_threshold));
  return static_cast<double>(scalars.learning_rate) * rms_w / clip;
}

double sum_in_order(const double* values, std::int64_t count) {
  double total = 0.0;
  for (std::int64_t i = 0; i < count; ++i) total += values[i];
  return total;
}

}  // namespace

void CpuOps::adafactor_matrix(float* w, float* row, float* col, const float* g, std::int64_t R,
                              std::int64_t C, const AdafactorScalars& scalars,
                              const SharedMatrix* shared, BFloat16* rounded) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const std::int64_t block_rows = std::max(kMinRows, cpu::num_chunks(R, kMaxBlocks));
  const std::int64_t blocks = cpu::num_chunks(R, block_rows);
  const double epsilon = static_cast<double>(scalars.epsilon_square);
  const bool shares_rows = shared != nullptr && shared->axis == SharedMatrix::Axis::rows;
  const bool shares_columns = shared != nullptr && !shares_rows;
  // Of the whole matrix.
  const double num_rows = static_cast<double>(shares_rows ? shared->num_elements / C : R);
  const double num_columns = static_cast<double>(shares_columns ? shared->num_elements / R : C);
  // Per block: column sums in f64, then two totals; the same added up over blocks, as ranks
  // exchange them; then, per block, column sums in f32; last 1 / sqrt(col).
  const std::int64_t exchanged = std::max(R, C) + 2;
  double* const column_sums =
      scratch_.get<double>(blocks * (C + 2) + exchanged + (blocks + 1) * ((C + 1) / 2));
  double* const w_squares = column_sums + blocks * C;
  double* const u_squares = w_squares + blocks;
  double* const sums = u_squares + blocks;
  float* const float_sums = reinterpret_cast<float*>(sums + exchanged);
  float* const col_factor = float_sums + blocks * C;

  cpu::for_chunks(R, block_rows, [&](std::int64_t begin, std::int64_t end, std::int64_t block) {
    double* const total = column_sums + block * C;
    float* const part = float_sums + block * C;
    std::fill_n(total, C, 0.0);
    std::fill_n(part, C, 0.0f);
    double w_square = 0.0;
    for (std::int64_t r = begin; r < end; ++r) {
      double g_square = 0.0;
      kernels.adafactor_sums(part, g + r * C, w + r * C, C, &g_square, &w_square);
      if (shares_columns)
        sums[r] = g_square;
      else
        row[r] = running_mean(row[r], g_square / num_columns + epsilon, scalars.decay);
      if ((r - begin) % kFloatRows == kFloatRows - 1 || r == end - 1)
        for (std::int64_t c = 0; c < C; ++c) {
          total[c] += static_cast<double>(part[c]);
          part[c] = 0.0f;
        }
    }
    w_squares[block] = w_square;
  });

  const auto sum_of_column = [&](std::int64_t c) {
    double sum = 0.0;
    for (std::int64_t block = 0; block < blocks; ++block) sum += column_sums[block * C + c];
    return sum;
  };
  const auto sum_of_rows = [&] {
    double sum = 0.0;
    for (std::int64_t r = 0; r < R; ++r) sum += static_cast<double>(row[r]);
    return sum;
  };
  double w_square = sum_in_order(w_squares, blocks), row_sum = 0.0;
  if (shares_rows) {
    for (std::int64_t c = 0; c < C; ++c) sums[c] = sum_of_column(c);
    sums[C] = w_square;
    sums[C + 1] = sum_of_rows();
    shared->sum({sums, static_cast<std::size_t>(C + 2)});
    w_square = sums[C];
    row_sum = sums[C + 1];
  } else if (shares_columns) {
    sums[R] = w_square;
    shared->sum({sums, static_cast<std::size_t>(R + 1)});
    for (std::int64_t r = 0; r < R; ++r)
      row[r] = running_mean(row[r], sums[r] / num_columns + epsilon, scalars.decay);
    w_square = sums[R];
  }
  cpu::for_chunks(
      C, cpu::chunk_rows(blocks), [&](std::int64_t begin, std::int64_t end, std::int64_t) {
        for (std::int64_t c = begin; c < end; ++c) {
          const double sum = shares_rows ? sums[c] : sum_of_column(c);
          col[c] = running_mean(col[c], sum / num_rows + epsilon, scalars.decay);
          col_factor[c] = static_cast<float>(1.0 / std::sqrt(static_cast<double>(col[c])));
        }
      });

  if (!shares_rows) row_sum = sum_of_rows();
  const double row_mean = row_sum / num_rows;

  // u = g * sqrt(row_mean / row) / sqrt(col)
  cpu::for_chunks(R, block_rows, [&](std::int64_t begin, std::int64_t end, std::int64_t block) {
    double u_square = 0.0;
    for (std::int64_t r = begin; r < end; ++r)
      u_square += row_mean / static_cast<double>(row[r]) *
                  kernels.product_square_sum(g + r * C, col_factor, C);
    u_squares[block] = u_square;
  });
  double u_square = sum_in_order(u_squares, blocks);
  if (shared != nullptr) shared->sum({&u_square, 1});
  const double factor = update_factor(scalars, w_square, u_square, num_rows * num_columns);
  const auto& to_bf16 = cpu::kernels_for(cpu::cpu_isa()).convert.to_bf16;
  cpu::for_chunks(R, block_rows, [&](std::int64_t begin, std::int64_t end, std::int64_t) {
    for (std::int64_t r = begin; r < end; ++r) {
      const double row_factor = factor * std::sqrt(row_mean / static_cast<double>(row[r]));
      kernels.subtract_scaled_product(w + r * C, static_cast<float>(row_factor), g + r * C,
                                      col_factor, C);
      if (rounded != nullptr) to_bf16(rounded + r * C, C, w + r * C, C, 1, C);
    }
  });
}

void CpuOps::do_adafactor_factored(Tensor w, Tensor row, Tensor col, Tensor g,
                                   const AdafactorScalars& scalars, const SharedMatrix* shared,
                                   Tensor rounded) {
  const std::int64_t stack = w.size(0), R = w.size(1), C = w.size(2);
  if (shared == nullptr && (R == 0 || C == 0)) return;
  for (std::int64_t s = 0; s < stack; ++s)
    adafactor_matrix(w.as<float>() + s * R * C, row.as<float>() + s * R, col.as<float>() + s * C,
                     g.as<float>() + s * R * C, R, C, scalars, shared,
                     rounded ? rounded.as<BFloat16>() + s * R * C : nullptr);
}

void CpuOps::do_adafactor_full(Tensor w, Tensor v, Tensor g, const AdafactorScalars& scalars,
                               const SharedMatrix* shared) {
  const std::int64_t size = w.num_elements();
  const std::int64_t chunks = cpu::num_chunks(size, cpu::kChunkElements);
  double* const w_squares = scratch_.get<double>(2 * chunks);
  double* const u_squares = w_squares + chunks;
  float* const value = w.as<float>();
  float* const second = v.as<float>();
  const float* const grad = g.as<float>();
  const double epsilon = static_cast<double>(scalars.epsilon_square);
  cpu::for_chunks(
      size, cpu::kChunkElements, [&](std::int64_t begin, std::int64_t end, std::int64_t chunk) {
        double w_square = 0.0, u_square = 0.0;
        for (std::int64_t i = begin; i < end; ++i) {
          const double square = static_cast<double>(grad[i]) * static_cast<double>(grad[i]);
          second[i] = running_mean(second[i], square + epsilon, scalars.decay);
          w_square += static_cast<double>(value[i]) * static_cast<double>(value[i]);
          u_square += square / static_cast<double>(second[i]);
        }
        w_squares[chunk] = w_square;
        u_squares[chunk] = u_square;
      });
  double squares[] = {sum_in_order(w_squares, chunks), sum_in_order(u_squares, chunks)};
  if (shared != nullptr) shared->sum(squares);
  const double factor =
      update_factor(scalars, squares[0], squares[1],
                    static_cast<double>(shared != nullptr ? shared->num_elements : size));
  cpu::for_chunks(
      size, cpu::kChunkElements, [&](std::int64_t begin, std::int64_t end, std::int64_t) {
        for (std::int64_t i = begin; i < end; ++i) {
          const double u = static_cast<double>(grad[i]) / std::sqrt(static_cast<double>(second[i]));
          value[i] = static_cast<float>(static_cast<double>(value[i]) - factor * u);
        }
      });
}

}  // namespace openmoe
