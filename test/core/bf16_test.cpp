// bf16 storage. Row-wise ops and attention do f32 arithmetic on widened values and round once, so
// that they must equal the f32 op on the same values, rounded: bit for bit, on every instruction
// set. Products of bf16 are tested in gemm_test.cpp; the whole step against a rounded reference by
// the golden files of test/golden/bf16.
#include <omp.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/cpu/cpu_features.h"
#include "core/cpu/cpu_ops.h"
#include "test/core/ops_test_support.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

using namespace test;
using Halves = std::vector<BFloat16>;

Halves rounded(const Floats& values) {
  return convert<BFloat16>(values);
}

Floats widened(const Halves& values) {
  Floats wide;
  for (const BFloat16 value : values) wide.push_back(static_cast<float>(value));
  return wide;
}

bool same_bits(const Halves& a, const Halves& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(BFloat16)) == 0;
}

// The same values in both storages.
struct Twin {
  Twin(Ops& ops, const Shape& shape, const Floats& values)
      : half(ops, shape, rounded(values)), wide(ops, shape, widened(rounded(values))) {}
  Twin(Ops& ops, const Shape& shape)
      : Twin(ops, shape, Floats(static_cast<std::size_t>(shape.num_elements()), 0.0f)) {}
  bool equal() const { return same_bits(half.values<BFloat16>(), rounded(wide.values())); }

  Buffer half, wide;
};

template <class Body>
void on_all_isas(const Body& body) {
  for (const cpu::CpuIsa isa : cpu::available_cpu_isas()) {
    INFO(cpu::name_of(isa));
    const cpu::ScopedCpuIsa scope(isa);
    const auto ops = make_cpu_ops();
    body(*ops);
  }
}

constexpr std::int64_t kN = 37, kD = 53;

}  // namespace

TEST_CASE("bf16: conversion rounds to nearest even and keeps NaN and infinity") {
  on_all_isas([](Ops& ops) {
    Floats values = Random(1).normal(1000);
    const float one = 1.0f, ulp = 0.0078125f;
    for (const float special : {one + 0.5f * ulp, one + 1.5f * ulp, -one - 0.5f * ulp, 0.0f, -0.0f,
                                INFINITY, -INFINITY, 3.4e38f, 1e-40f, NAN})
      values.push_back(special);
    const auto n = static_cast<std::int64_t>(values.size());
    const Buffer wide(ops, {n}, values), half(ops, {n}, Halves(values.size()));
    ops.convert(half, wide);
    CHECK(same_bits(half.values<BFloat16>(), rounded(values)));
    CHECK(rounded({one + 0.5f * ulp, one + 1.5f * ulp})[0].bits == 0x3f80);
    CHECK(rounded({one + 0.5f * ulp, one + 1.5f * ulp})[1].bits == 0x3f82);
    const Buffer back(ops, {n - 1});
    ops.convert(back, Tensor(half).rows(0, n - 1));
    const Floats expected = widened(rounded(Floats(values.begin(), values.end() - 1)));
    CHECK(std::memcmp(back.values().data(), expected.data(), expected.size() * sizeof(float)) == 0);
  });
}

TEST_CASE("bf16: norm, rope and FFN activations are the f32 ops, rounded once") {
  on_all_isas([](Ops& ops) {
    Random random(2);
    const Buffer x(ops, {kN, kD}, random.normal(kN * kD)), w(ops, {kD}, random.normal(kD));
    const Buffer segments(ops, {kN}, random.integers(kN, 0, 2)), rstd(ops, {kN});
    const Twin y(ops, {kN, kD});
    ops.rms_norm_forward(y.half, rstd, x, w, segments, 1e-6f);
    ops.rms_norm_forward(y.wide, rstd, x, w, segments, 1e-6f);
    CHECK(y.equal());

    const Shape heads{2, 9, 3, 22};
    const Twin q(ops, heads, random.normal(heads));
    ops.rope_forward(q.half, 10000.0f);
    ops.rope_forward(q.wide, 10000.0f);
    CHECK(q.equal());

    for (const FfnKind kind : {FfnKind::swiglu, FfnKind::gated_swiglu}) {
      const std::int64_t gate_width = (kind == FfnKind::gated_swiglu ? 2 : 1) * kD;
      const Twin gate(ops, {kN, gate_width}, random.normal(kN * gate_width));
      const Twin up(ops, {kN, kD}, random.normal(kN * kD)),
          dh(ops, {kN, kD}, random.normal(kN * kD));
      const Twin h(ops, {kN, kD});
      ops.ffn_activation_forward(h.half, gate.half, up.half, kind, kN);
      ops.ffn_activation_forward(h.wide, gate.wide, up.wide, kind, kN);
      CHECK(h.equal());
      ops.ffn_activation_backward(gate.half, up.half, dh.half, gate.half, up.half, kind, kN);
      ops.ffn_activation_backward(gate.wide, up.wide, dh.wide, gate.wide, up.wide, kind, kN);
      CHECK(gate.equal());
      CHECK(up.equal());
    }
  });
}

TEST_CASE("bf16: rows of experts are the f32 ops, rounded once") {
  on_all_isas([](Ops& ops) {
    Random random(3);
    const Buffer row_token(ops, {4}, Ints{2, 0, 1, 2}),
        assignment(ops, {3, 2}, Ints{1, -1, 2, -1, 0, 3});
    const Buffer gate(ops, {3, 2}, random.normal(6)), dy(ops, {3, kD}, random.normal(3 * kD));
    const Twin x(ops, {3, kD}, random.normal(3 * kD)), rows(ops, {4, kD});
    ops.gather_rows(rows.half, x.half, row_token, 4);
    ops.gather_rows(rows.wide, x.wide, row_token, 4);
    CHECK(rows.equal());
    const Floats start = random.normal(3 * kD);
    for (const bool weighted : {false, true}) {
      const Buffer from_half(ops, {3, kD}, start), from_wide(ops, {3, kD}, start);
      for (const auto& [sum, source] :
           {std::pair{&from_half, &rows.half}, {&from_wide, &rows.wide}}) {
        if (weighted)
          ops.combine_rows_forward_accumulate(*sum, *source, gate, assignment);
        else
          ops.gather_rows_backward_accumulate(*sum, *source, assignment);
      }
      CHECK(from_half.values() == from_wide.values());
    }
    const Twin drows(ops, {4, kD});
    const Buffer dgate_half(ops, {3, 2}), dgate_wide(ops, {3, 2});
    ops.combine_rows_backward(drows.half, dgate_half, dy, rows.half, gate, assignment);
    ops.combine_rows_backward(drows.wide, dgate_wide, dy, rows.wide, gate, assignment);
    CHECK(drows.equal());
    CHECK(dgate_half.values() == dgate_wide.values());
  });
}

TEST_CASE("bf16: attention is the f32 attention of the same values, rounded once") {
  on_all_isas([](Ops& ops) {
    Random random(4);
    const Shape shape{2, 150, 2, 24};
    const Twin q(ops, shape, random.normal(shape)), k(ops, shape, random.normal(shape)),
        v(ops, shape, random.normal(shape)), d_o(ops, shape, random.normal(shape));
    const Buffer segments(ops, {2, 150}, random.integers(300, 0, 2)), log_z(ops, {2, 2, 150});
    const Twin o(ops, shape), dq(ops, shape), dk(ops, shape), dv(ops, shape);
    ops.attention_forward(o.half, log_z, q.half, k.half, v.half, segments, 0.2f);
    ops.attention_forward(o.wide, log_z, q.wide, k.wide, v.wide, segments, 0.2f);
    CHECK(o.equal());
    const Buffer stored_o(ops, shape, widened(o.half.values<BFloat16>()));
    ops.attention_backward(dq.half, dk.half, dv.half, d_o.half, q.half, k.half, v.half, o.half,
                           segments, log_z, 0.2f);
    ops.attention_backward(dq.wide, dk.wide, dv.wide, d_o.wide, q.wide, k.wide, v.wide, stored_o,
                           segments, log_z, 0.2f);
    CHECK(dq.equal());
    CHECK(dk.equal());
    CHECK(dv.equal());
  });
}

}  // namespace openmoe
