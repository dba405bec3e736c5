#include <algorithm>
#include <cstring>

#include "core/cpu/cpu_ops.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"

namespace openmoe {
namespace {

// Columns of a stripe of the backward are a multiple of this.
constexpr std::int64_t kStripe = 64;

// An id outside the vocabulary would read or write foreign memory. Cheap beside the D values that
// each id moves.
void check_ids(const char* op, const std::int32_t* ids, std::int64_t N, std::int64_t rows,
               const VocabularyRange& range) {
  const std::int64_t total = range.is_whole() ? rows : range.total;
  OPENMOE_CHECK(range.first >= 0 && range.first + rows <= total, op, ": rows [", range.first, ", ",
                range.first + rows, ") of ", total);
  for (std::int64_t n = 0; n < N; ++n)
    OPENMOE_CHECK(ids[n] >= 0 && ids[n] < total, op, ": ids[", n, "] is ", ids[n],
                  ", the table has ", total, " rows");
}

}  // namespace

void CpuOps::do_embedding_forward(Tensor x, Tensor table, Tensor ids,
                                  const VocabularyRange& range) {
  const std::int64_t N = x.size(0), D = x.size(1), V = table.size(0), first = range.first;
  const std::int32_t* const id = ids.as<std::int32_t>();
  const float* const from = table.as<float>();
  float* const to = x.as<float>();
  check_ids("embedding_forward", id, N, V, range);
  cpu::for_chunks(N, cpu::chunk_rows(D), [=](std::int64_t begin, std::int64_t end, std::int64_t) {
    for (std::int64_t n = begin; n < end; ++n) {
      const std::int64_t row = id[n] - first;
      if (row >= 0 && row < V)
        std::memcpy(to + n * D, from + row * D, static_cast<std::size_t>(D) * sizeof(float));
      else
        std::fill_n(to + n * D, D, 0.0f);
    }
  });
}

// Tokens share table rows, so the threads split the columns, in stripes as wide as they can be,
// since each stripe visits every token. The width changes no result: each element of the table sees
// its tokens in rising order.
void CpuOps::do_embedding_backward(Tensor dtable, Tensor dx, Tensor ids,
                                   const VocabularyRange& range) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const std::int64_t N = dx.size(0), D = dx.size(1), V = dtable.size(0), first = range.first;
  const std::int32_t* const id = ids.as<std::int32_t>();
  const float* const from = dx.as<float>();
  float* const to = dtable.as<float>();
  check_ids("embedding_backward", id, N, V, range);
  const std::int64_t stripe =
      std::max<std::int64_t>(1, cpu::num_chunks(cpu::num_chunks(D, kStripe), cpu::max_threads())) *
      kStripe;
  cpu::for_chunks(D, stripe, [&](std::int64_t begin, std::int64_t end, std::int64_t) {
    for (std::int64_t n = 0; n < N; ++n) {
      const std::int64_t row = id[n] - first;
      if (row >= 0 && row < V) kernels.add(to + row * D + begin, from + n * D + begin, end - begin);
    }
  });
}

}  // namespace openmoe
