// Every op of the CPU backend gives the same bits for 1, 2 and 3 threads, at sizes that make
// several chunks.
#include <omp.h>

#include <cstring>
#include <functional>
#include <vector>

#include "core/cpu/cpu_ops.h"
#include "test/core/ops_test_support.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

using namespace test;

class ScopedThreads {
 public:
  explicit ScopedThreads(int threads) : previous_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~ScopedThreads() { omp_set_num_threads(previous_); }
  ScopedThreads(const ScopedThreads&) = delete;
  ScopedThreads& operator=(const ScopedThreads&) = delete;

 private:
  int previous_;
};

void append(Floats& all, const Buffer& buffer) {
  const Floats values = buffer.values();
  all.insert(all.end(), values.begin(), values.end());
}

// `run` returns everything that an op wrote; it must draw its inputs from fixed seeds.
void check_threads(const char* what, const std::function<Floats(Ops&)>& run) {
  INFO(what);
  std::vector<Floats> results;
  for (const int threads : {1, 2, 3, 2}) {
    const ScopedThreads scope(threads);
    const auto ops = make_cpu_ops();
    results.push_back(run(*ops));
  }
  REQUIRE(!results[0].empty());
  for (const Floats& result : results) {
    REQUIRE(result.size() == results[0].size());
    CHECK(std::memcmp(result.data(), results[0].data(), result.size() * sizeof(float)) == 0);
  }
}

constexpr std::int64_t kN = 403, kD = 150;

TEST_CASE("cpu ops threads: element-wise ops and embedding") {
  check_threads("add, multiply, sum of squares", [](Ops& ops) {
    Random random(1);
    const std::int64_t n = 200003;
    const Buffer y(ops, {n}, random.normal(n));
    ops.add_accumulate(y, Buffer(ops, {n}, random.normal(n)));
    ops.multiply(y, 0.3f);
    const double squares = ops.sum_of_squares(y);
    Floats all = y.values();
    const auto high = static_cast<float>(squares);
    all.push_back(high);
    all.push_back(static_cast<float>(squares - static_cast<double>(high)));
    return all;
  });
  check_threads("embedding", [](Ops& ops) {
    Random random(2);
    const Buffer dtable(ops, {9, kD}, 0.0f);
    ops.embedding_backward(dtable, Buffer(ops, {kN, kD}, random.normal(kN * kD)),
                           Buffer(ops, {kN}, random.integers(kN, 0, 8)));
    return dtable.values();
  });
}

TEST_CASE("cpu ops threads: RMSNorm, rope, FFN activation") {
  check_threads("rms_norm", [](Ops& ops) {
    Random random(3);
    const Buffer x(ops, {kN, kD}, random.normal(kN * kD)), w(ops, {kD}, random.normal(kD));
    const Buffer segments(ops, {kN}, random.integers(kN, 0, 3)),
        dy(ops, {kN, kD}, random.normal(kN * kD));
    const Buffer y(ops, {kN, kD}), rstd(ops, {kN}), dx(ops, {kN, kD}, 0.0f), dw(ops, {kD}, 0.0f);
    ops.rms_norm_forward(y, rstd, x, w, segments, 1e-6f);
    ops.rms_norm_backward_accumulate(dx, dw, dy, x, w, segments, rstd);
    Floats all;
    for (const Buffer* buffer : {&y, &rstd, &dx, &dw}) append(all, *buffer);
    return all;
  });
  check_threads("rope", [](Ops& ops) {
    const Buffer x(ops, {3, 100, 4, 38}, Random(4).normal(3 * 100 * 4 * 38));
    ops.rope_forward(x, 10000.0f);
    return x.values();
  });
  for (const FfnKind kind : {FfnKind::swiglu, FfnKind::gated_swiglu})
    check_threads("ffn", [kind](Ops& ops) {
      Random random(5);
      const std::int64_t width = kind == FfnKind::gated_swiglu ? 2 * kD : kD;
      const Buffer gate(ops, {kN, width}, random.normal(kN * width)),
          up(ops, {kN, kD}, random.normal(kN * kD));
      const Buffer h(ops, {kN, kD}), dgate(ops, {kN, width}), dup(ops, {kN, kD});
      ops.ffn_activation_forward(h, gate, up, kind, kN);
      ops.ffn_activation_backward(dgate, dup, h, gate, up, kind, kN);
      Floats all;
      for (const Buffer* buffer : {&h, &dgate, &dup}) append(all, *buffer);
      return all;
    });
}

TEST_CASE("cpu ops threads: products and attention") {
  check_threads("linear and grouped", [](Ops& ops) {
    Random random(6);
    const std::int64_t out = 130;
    const Buffer x(ops, {kN, kD}, random.normal(kN * kD)),
        w(ops, {out, kD}, random.normal(out * kD));
    const Buffer experts(ops, {3, kD, out}, random.normal(3 * kD * out));
    const Buffer y(ops, {kN, out}, 0.0f), dx(ops, {kN, kD}, 0.0f), dw(ops, {out, kD}, 0.0f),
        dexperts(ops, {3, kD, out}, 0.0f);
    ops.linear_forward(y, x, w);
    ops.linear_backward_input(dx, y, w);
    ops.linear_backward_weight(dw, y, x);
    Floats all;
    for (const Buffer* buffer : {&y, &dx, &dw}) append(all, *buffer);
    std::vector<std::int64_t> offsets{0, 300, 300, kN};
    const Tensor host_offsets = host_view(offsets.data(), {4});
    ops.grouped_matmul_forward(y, x, experts, host_offsets);
    ops.grouped_matmul_backward_input(dx, y, experts, host_offsets);
    ops.grouped_matmul_backward_weight(dexperts, y, x, host_offsets);
    for (const Buffer* buffer : {&y, &dx, &dexperts}) append(all, *buffer);
    return all;
  });
  check_threads("attention", [](Ops& ops) {
    Random random(7);
    const Shape shape{2, 150, 3, 32};
    const Buffer q(ops, shape, random.normal(shape)), k(ops, shape, random.normal(shape)),
        v(ops, shape, random.normal(shape));
    const Buffer segments(ops, {2, 150}, random.integers(300, 0, 2));
    const Buffer o(ops, shape), log_z(ops, {2, 3, 150}), dq(ops, shape), dk(ops, shape),
        dv(ops, shape);
    ops.attention_forward(o, log_z, q, k, v, segments, 0.2f);
    ops.attention_backward(dq, dk, dv, v, q, k, v, o, segments, log_z, 0.2f);
    Floats all;
    for (const Buffer* buffer : {&o, &dq, &dk, &dv}) append(all, *buffer);
    return all;
  });
}

TEST_CASE("cpu ops threads: router, gather and combine") {
  check_threads("router", [](Ops& ops) {
    Random random(8);
    const std::int64_t N = 600, E = 12, G = 200;
    const RouterBuffers saved(ops, N, E, G);
    const Buffer routed(ops, {N}, random.integers(N, 0, 3)), dlogits(ops, {N, E});
    ops.router_forward(saved.output(), Buffer(ops, {N, E}, random.normal(N * E)), routed,
                       {G, 20, true});
    ops.router_backward(dlogits, Buffer(ops, {N, 2}, random.normal(N * 2)), routed, saved.output(),
                        {0.1f, 0.2f}, {G, 20, true});
    Floats all;
    for (const Buffer* buffer :
         {&saved.prob, &saved.gate, &saved.group_prob, &saved.group_z, &dlogits})
      append(all, *buffer);
    for (const std::int32_t slot : saved.slot.values<std::int32_t>())
      all.push_back(static_cast<float>(slot));
    return all;
  });
  check_threads("gather and combine", [](Ops& ops) {
    Random random(9);
    Ints assignment_row, row_token;
    for (std::int32_t i = 0; i < 2 * kN; ++i) {
      assignment_row.push_back(i);
      row_token.push_back(i / 2);
    }
    const Buffer assignments(ops, {kN, 2}, assignment_row),
        gate(ops, {kN, 2}, random.normal(kN * 2));
    const Buffer x(ops, {kN, kD}, random.normal(kN * kD)), rows(ops, {2 * kN, kD}),
        drows(ops, {2 * kN, kD});
    const Buffer y(ops, {kN, kD}, 0.0f), dx(ops, {kN, kD}, 0.0f), dgate(ops, {kN, 2});
    ops.gather_rows(rows, x, Buffer(ops, {2 * kN}, row_token), 2 * kN);
    ops.combine_rows_forward_accumulate(y, rows, gate, assignments);
    ops.combine_rows_backward(drows, dgate, y, rows, gate, assignments);
    ops.gather_rows_backward_accumulate(dx, drows, assignments);
    Floats all;
    for (const Buffer* buffer : {&rows, &y, &drows, &dgate, &dx}) append(all, *buffer);
    return all;
  });
}

TEST_CASE("cpu ops threads: cross-entropy and Adafactor") {
  check_threads("cross-entropy", [](Ops& ops) {
    Random random(10);
    const std::int64_t n = 37, V = 3001;
    const Buffer logits(ops, {n, V}, random.normal(n * V)), token_loss(ops, {n});
    const LossSums sums =
        ops.softmax_cross_entropy(logits, Buffer(ops, {n}, random.integers(n, 0, V - 1)),
                                  Buffer(ops, {n}, 1.0f), token_loss, 1e-4f, 0.1f);
    Floats all = logits.values();
    append(all, token_loss);
    for (const double value : {sums.cross_entropy, sums.log_z_square, sums.correct}) {
      all.push_back(static_cast<float>(value));
      all.push_back(static_cast<float>(value - static_cast<double>(all.back())));
    }
    return all;
  });
  check_threads("adafactor", [](Ops& ops) {
    Random random(11);
    AdafactorScalars scalars;
    scalars.learning_rate = 0.01f;
    const Shape shape{2, kN, kD};
    const Buffer w(ops, shape, random.normal(shape)), g(ops, shape, random.normal(shape));
    const Buffer row(ops, {2, kN}), col(ops, {2, kD}), v(ops, shape);
    ops.adafactor_factored(w, row, col, g, scalars);
    ops.adafactor_full(w, v, g, scalars);
    Floats all;
    for (const Buffer* buffer : {&w, &row, &col, &v}) append(all, *buffer);
    return all;
  });
}

}  // namespace
}  // namespace openmoe
