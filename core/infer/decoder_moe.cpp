// The mixture-of-experts sublayer of the decoder.
#include <algorithm>
#include <cmath>

#include "core/base/check.h"
#include "core/infer/decoder.h"
#include "core/infer/dot_kernels.h"
#include "core/infer/products.h"

namespace openmoe::infer {

// The two choices of each row, their gates, and which of them get a slot.
void Decoder::route(const LayerWeights& layer, std::int64_t N) {
  const ModelConfig& c = weights_.model();
  const std::int64_t E = c.num_experts, e_ld = padded(E);
  const Product product[] = {
      {router_logits_.data(), e_ld, y_.data(), padded(c.d_model), N, &layer.router}};
  multiply(product);
  for (std::int64_t n = 0; n < N; ++n) {
    const float* const logits = router_logits_.data() + n * e_ld;
    std::int64_t first = 0, second = -1;  // ties to the lower index
    for (std::int64_t e = 1; e < E; ++e)
      if (logits[e] > logits[first]) first = e;
    for (std::int64_t e = 0; e < E; ++e)
      if (e != first && (second < 0 || logits[e] > logits[second])) second = e;
    double total = 0.0;
    for (std::int64_t e = 0; e < E; ++e)
      total += std::exp(static_cast<double>(logits[e]) - static_cast<double>(logits[first]));
    const double p0 = 1.0 / total;
    const double p1 =
        std::exp(static_cast<double>(logits[second]) - static_cast<double>(logits[first])) / total;
    const double scale = routing_.normalize_gates ? 1.0 / (p0 + p1) : 1.0;
    assignments_[static_cast<std::size_t>(2 * n)] = {n, first, static_cast<float>(scale * p0), 0};
    assignments_[static_cast<std::size_t>(2 * n + 1)] = {n, second, static_cast<float>(scale * p1),
                                                         0};
  }
  if (!options_.capacity) return;
  RoutingConfig routing = routing_;
  routing.capacity_counts = *options_.capacity;
  routing.group_tokens = N;
  const std::int64_t capacity = routing.capacity(E, false);
  std::vector<std::int64_t> queue(static_cast<std::size_t>(E), 0);
  for (std::int64_t choice = 0; choice < 2; ++choice) {
    for (std::int64_t n = 0; n < N; ++n) {
      Assignment& assignment = assignments_[static_cast<std::size_t>(2 * n + choice)];
      if (queue[static_cast<std::size_t>(assignment.expert)]++ < capacity) continue;
      assignment.place = -1;
      ++num_dropped_;
    }
  }
}

// x += sum over the kept choices of gate * expert(y)
void Decoder::moe(const LayerWeights& layer, std::int64_t N) {
  const ModelConfig& c = weights_.model();
  const std::int64_t El = weights_.num_local_experts(), first_expert = weights_.first_expert();
  const Split& own = weights_.splits().d_model;
  const Split& columns = weights_.splits().ffn;  // of h
  const std::int64_t f = columns.size();
  const std::int64_t D_ld = padded(c.d_model), g_ld = padded(layer.experts[0].gate.out()),
                     up_ld = padded(f), h_ld = padded(c.ffn_dim);
  route(layer, N);

  // Places by expert, then by row.
  expert_begin_.assign(static_cast<std::size_t>(El + 1), 0);
  const std::span assignments(assignments_.data(), static_cast<std::size_t>(2 * N));
  const auto local = [&](const Assignment& a) {
    return a.place >= 0 && a.expert >= first_expert && a.expert < first_expert + El;
  };
  for (const Assignment& a : assignments)
    if (local(a)) ++expert_begin_[static_cast<std::size_t>(a.expert - first_expert + 1)];
  for (std::size_t e = 0; e < static_cast<std::size_t>(El); ++e)
    expert_begin_[e + 1] += expert_begin_[e];
  std::vector<std::int64_t> next = expert_begin_;
  for (Assignment& a : assignments) {
    a.place = local(a) ? next[static_cast<std::size_t>(a.expert - first_expert)]++ : -1;
    if (a.place >= 0)
      std::copy_n(y_.data() + a.row * D_ld, D_ld, expert_x_.data() + a.place * D_ld);
  }

  std::vector<Product> in, out;
  for (std::int64_t e = 0; e < El; ++e) {
    const FfnWeights& expert = layer.experts[static_cast<std::size_t>(e)];
    const std::int64_t begin = expert_begin_[static_cast<std::size_t>(e)];
    const std::int64_t rows = expert_begin_[static_cast<std::size_t>(e + 1)] - begin;
    if (rows == 0) continue;
    const float* const x = expert_x_.data() + begin * D_ld;
    in.push_back({expert_gate_.data() + begin * g_ld, g_ld, x, D_ld, rows, &expert.gate});
    in.push_back({expert_up_.data() + begin * up_ld, up_ld, x, D_ld, rows, &expert.up});
    out.push_back({expert_out_.data() + begin * D_ld + own.begin(), D_ld,
                   expert_h_.data() + begin * h_ld, h_ld, rows, &expert.down});
  }
  multiply(in);
  const bool gated = c.ffn == FfnKind::gated_swiglu;
  const std::int64_t num_places = expert_begin_.back();
#pragma omp parallel for schedule(static) if (num_places * f > 65536)
  for (std::int64_t place = 0; place < num_places; ++place) {
    const float* const gate = expert_gate_.data() + place * g_ld;
    dot_kernels().activate(expert_h_.data() + place * h_ld + columns.begin(),
                           gated ? gate : nullptr, gated ? gate + f : gate,
                           expert_up_.data() + place * up_ld, f);
  }
  gather(columns, expert_h_.data(), h_ld, num_places);
  multiply(out);

  // Both terms first, so that ranks which hold one each add to the same sum.
  for (std::int64_t n = 0; n < N; ++n) {
    float* const sum = out_.data() + n * D_ld + own.begin();
    std::fill_n(sum, own.size(), 0.0f);
    for (const Assignment& a : assignments.subspan(static_cast<std::size_t>(2 * n), 2)) {
      if (a.place < 0) continue;
      const float* const row = expert_out_.data() + a.place * D_ld + own.begin();
      for (std::int64_t i = 0; i < own.size(); ++i) sum[i] += a.gate * row[i];
    }
  }
  gather(own, out_.data(), D_ld, N, true);
  for (std::int64_t i = 0; i < N * D_ld; ++i)
    x_[static_cast<std::size_t>(i)] += out_[static_cast<std::size_t>(i)];
}

}  // namespace openmoe::infer
