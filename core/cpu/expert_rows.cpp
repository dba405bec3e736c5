#include <cstring>

#include "core/cpu/cpu_ops.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"
#include "core/cpu/storage.h"

namespace openmoe {

void CpuOps::do_gather_rows(Tensor rows, Tensor x, Tensor row_token, std::int64_t num_rows) {
  const std::int64_t row_bytes = x.size(1) * size_of(x.dtype);
  const std::int32_t* const token = row_token.as<std::int32_t>();
  const char* const from = static_cast<const char*>(x.data);
  char* const to = static_cast<char*>(rows.data);
  cpu::for_chunks(num_rows, cpu::chunk_rows(x.size(1)),
                  [=](std::int64_t begin, std::int64_t end, std::int64_t) {
                    for (std::int64_t s = begin; s < end; ++s)
                      std::memcpy(to + s * row_bytes, from + token[s] * row_bytes,
                                  static_cast<std::size_t>(row_bytes));
                  });
}

// Every row of a backward is split over tokens, not over expert rows: a token owns its rows, so
// nothing is written twice.
void CpuOps::do_gather_rows_backward_accumulate(Tensor dx, Tensor drows, Tensor assignment_row) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const std::int64_t N = dx.size(0), D = dx.size(1);
  const std::int32_t* const row = assignment_row.as<std::int32_t>();
  float* const to = dx.as<float>();
  cpu::with_storage(drows.dtype, [&](auto zero) {
    using S = decltype(zero);
    const S* const from = drows.as<S>();
    cpu::for_chunks(N, cpu::chunk_rows(D), [&](std::int64_t begin, std::int64_t end, std::int64_t) {
      for (std::int64_t n = begin; n < end; ++n)
        for (std::int64_t k = 0; k < 2; ++k)
          if (row[n * 2 + k] >= 0)
            kernels.stored_as<S>().add(to + n * D, from + row[n * 2 + k] * D, D);
    });
  });
}

void CpuOps::do_combine_rows_forward_accumulate(Tensor y, Tensor rows, Tensor gate,
                                                Tensor assignment_row) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const std::int64_t N = y.size(0), D = y.size(1);
  const std::int32_t* const row = assignment_row.as<std::int32_t>();
  const float* const weight = gate.as<float>();
  float* const to = y.as<float>();
  cpu::with_storage(rows.dtype, [&](auto zero) {
    using S = decltype(zero);
    const S* const from = rows.as<S>();
    cpu::for_chunks(N, cpu::chunk_rows(D), [&](std::int64_t begin, std::int64_t end, std::int64_t) {
      for (std::int64_t n = begin; n < end; ++n)
        for (std::int64_t i = n * 2; i < n * 2 + 2; ++i)
          if (row[i] >= 0)
            kernels.stored_as<S>().add_scaled(to + n * D, weight[i], from + row[i] * D, D);
    });
  });
}

void CpuOps::do_combine_rows_backward(Tensor drows, Tensor dgate, Tensor dy, Tensor rows,
                                      Tensor gate, Tensor assignment_row) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const std::int64_t N = dy.size(0), D = dy.size(1);
  const std::int32_t* const row = assignment_row.as<std::int32_t>();
  const float* const weight = gate.as<float>();
  const float* const grad = dy.as<float>();
  float* const dweight = dgate.as<float>();
  cpu::with_storage(rows.dtype, [&](auto zero) {
    using S = decltype(zero);
    const auto& stored = kernels.stored_as<S>();
    const S* const in = rows.as<S>();
    S* const out = drows.as<S>();
    cpu::for_chunks(N, cpu::chunk_rows(D), [&](std::int64_t begin, std::int64_t end, std::int64_t) {
      for (std::int64_t n = begin; n < end; ++n)
        for (std::int64_t i = n * 2; i < n * 2 + 2; ++i) {
          dweight[i] = 0.0f;
          if (row[i] < 0) continue;
          dweight[i] = stored.dot(grad + n * D, in + row[i] * D, D);
          stored.scale(out + row[i] * D, weight[i], grad + n * D, D);
        }
    });
  });
}

}  // namespace openmoe
