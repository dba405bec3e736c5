#include "core/infer/decoder.h"

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "core/base/check.h"
#include "core/infer/dot_kernels.h"
#include "core/infer/products.h"

namespace openmoe::infer {
namespace {

constexpr std::int64_t kReserveStep = 16;
constexpr std::int64_t kLeastWork = 1 << 16;  // multiplications that are worth waking threads for

void resize(std::vector<float>& rows, std::int64_t count, std::int64_t width) {
  rows.assign(static_cast<std::size_t>(count * padded(width)), 0.0f);
}

float logit_scale(const ModelConfig& model) {
  return model.attention_scale == AttentionScale::rsqrt
             ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(model.head_dim)))
             : 1.0f;
}

}  // namespace

Decoder::Decoder(const DecodeWeights& weights, const RoutingConfig& routing,
                 const DecodeOptions& options, SumOverRanks sum_over_ranks)
    : weights_(weights),
      routing_(routing),
      options_(options),
      sum_over_ranks_(std::move(sum_over_ranks)),
      cache_length_(padded(options.max_length)) {
  const ModelConfig& c = weights.model();
  OPENMOE_CHECK(options.max_sequences > 0 && options.max_length > 0, options.max_sequences,
                " sequences of ", options.max_length);
  const std::int64_t half = c.head_dim / 2;
  for (std::int64_t t = 0; t < options.max_length; ++t) {
    for (std::int64_t j = 0; j < half; ++j) {
      const double angle =
          static_cast<double>(t) *
          std::pow(c.rope_base, -static_cast<double>(j) / static_cast<double>(half));
      rope_cos_.push_back(static_cast<float>(std::cos(angle)));
      rope_sin_.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  const std::int64_t bytes =
      options.max_sequences * cache_length_ * c.attention_dim() * size_of(DType::f32);
  for (std::int64_t i = 0; i < c.num_layers; ++i)
    caches_.push_back(LayerCache{Block(bytes), Block(bytes)});
  scores_.resize(static_cast<std::size_t>(omp_get_max_threads() * cache_length_));
  reserve(options.max_sequences);
}

void Decoder::reserve(std::int64_t rows) {
  if (rows <= reserved_) return;
  reserved_ = (rows + kReserveStep - 1) / kReserveStep * kReserveStep;
  const ModelConfig& c = weights_.model();
  const std::int64_t A = c.attention_dim(), F = c.ffn_dim, Fg = c.gate_dim();
  for (auto* row : {&x_, &y_, &out_}) resize(*row, reserved_, c.d_model);
  for (auto* row : {&q_, &k_, &v_, &o_}) resize(*row, reserved_, A);
  resize(gate_, reserved_, Fg);
  for (auto* row : {&up_, &h_}) resize(*row, reserved_, F);
  if (c.num_moe_layers() == 0) return;
  for (auto* row : {&expert_x_, &expert_out_}) resize(*row, 2 * reserved_, c.d_model);
  resize(expert_gate_, 2 * reserved_, Fg);
  for (auto* row : {&expert_up_, &expert_h_}) resize(*row, 2 * reserved_, F);
  resize(router_logits_, reserved_, c.num_experts);
  assignments_.resize(static_cast<std::size_t>(2 * reserved_));
}

// y = x / rms(x) * weight
void Decoder::norm(const std::vector<float>& weight, std::int64_t num_rows) {
  const std::int64_t D = weights_.model().d_model, ld = padded(D);
  const double eps = weights_.model().norm_eps;
#pragma omp parallel for schedule(static) if (num_rows > 32)
  for (std::int64_t n = 0; n < num_rows; ++n) {
    const float* const x = x_.data() + n * ld;
    float* const y = y_.data() + n * ld;
    double square = 0.0;
    for (std::int64_t i = 0; i < D; ++i)
      square += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    const auto rstd = static_cast<float>(1.0 / std::sqrt(square / static_cast<double>(D) + eps));
    for (std::int64_t i = 0; i < D; ++i) y[i] = x[i] * rstd * weight[static_cast<std::size_t>(i)];
  }
}

// Turns q and k to their positions (pairs j and j + Dh/2) and writes k and v to the cache.
void Decoder::rotate_and_store(LayerCache& cache, std::span<const DecodeRow> rows) {
  const ModelConfig& c = weights_.model();
  const std::int64_t Dh = c.head_dim, half = Dh / 2, ld = padded(c.attention_dim());
#pragma omp parallel for schedule(static) if (rows.size() > 32)
  for (std::size_t n = 0; n < rows.size(); ++n) {
    const DecodeRow& row = rows[n];
    const float* const cos = rope_cos_.data() + row.position * half;
    const float* const sin = rope_sin_.data() + row.position * half;
    for (std::int64_t head = 0; head < c.num_heads; ++head) {
      const std::int64_t at = static_cast<std::int64_t>(n) * ld + head * Dh;
      for (float* const x : {q_.data() + at, k_.data() + at}) {
        for (std::int64_t j = 0; j < half; ++j) {
          const float a = x[j], b = x[j + half];
          x[j] = a * cos[j] - b * sin[j];
          x[j + half] = b * cos[j] + a * sin[j];
        }
      }
      const std::int64_t slot = (row.sequence * c.num_heads + head) * cache_length_ * Dh;
      float* const keys = cache.keys.as<float>() + slot + row.position / kChunk * kChunk * Dh +
                          row.position % kChunk;
      for (std::int64_t d = 0; d < Dh; ++d) keys[d * kChunk] = k_[static_cast<std::size_t>(at + d)];
      std::copy_n(v_.data() + at, Dh, cache.values.as<float>() + slot + row.position * Dh);
    }
  }
}

// x += Wo attention(Wq y, Wk y, Wv y)
void Decoder::attention(const LayerWeights& layer, LayerCache& cache,
                        std::span<const DecodeRow> rows) {
  const ModelConfig& c = weights_.model();
  const std::int64_t Dh = c.head_dim, ld = padded(c.attention_dim()), D_ld = padded(c.d_model);
  const auto N = static_cast<std::int64_t>(rows.size());
  const Product qkv[] = {{q_.data(), ld, y_.data(), D_ld, N, &layer.q},
                         {k_.data(), ld, y_.data(), D_ld, N, &layer.k},
                         {v_.data(), ld, y_.data(), D_ld, N, &layer.v}};
  multiply(qkv);
  rotate_and_store(cache, rows);
  const DotKernels& kernels = dot_kernels();
  const float scale = logit_scale(c);
  std::int64_t attended = 0;
  for (const DecodeRow& row : rows) attended += row.position + 1;
#pragma omp parallel for schedule(dynamic, 1) if (attended * c.attention_dim() > kLeastWork)
  for (std::int64_t unit = 0; unit < N * c.num_heads; ++unit) {
    const std::int64_t n = unit / c.num_heads, head = unit % c.num_heads;
    const DecodeRow& row = rows[static_cast<std::size_t>(n)];
    const std::int64_t slot = (row.sequence * c.num_heads + head) * cache_length_ * Dh;
    kernels.attend({.o = o_.data() + n * ld + head * Dh,
                    .q = q_.data() + n * ld + head * Dh,
                    .keys = cache.keys.as<float>() + slot,
                    .values = cache.values.as<float>() + slot,
                    .length = row.position + 1,
                    .head_dim = Dh,
                    .scale = scale,
                    .scores = scores_.data() + omp_get_thread_num() * cache_length_});
  }
  const Product out[] = {{out_.data(), D_ld, o_.data(), ld, N, &layer.o}};
  multiply(out);
  for (std::int64_t i = 0; i < N * D_ld; ++i)
    x_[static_cast<std::size_t>(i)] += out_[static_cast<std::size_t>(i)];
}

void Decoder::ffn(const FfnWeights& weights, std::int64_t N) {
  const ModelConfig& c = weights_.model();
  const std::int64_t D_ld = padded(c.d_model), g_ld = padded(c.gate_dim()),
                     f_ld = padded(c.ffn_dim);
  const Product in[] = {{gate_.data(), g_ld, y_.data(), D_ld, N, &weights.gate},
                        {up_.data(), f_ld, y_.data(), D_ld, N, &weights.up}};
  multiply(in);
  const bool gated = c.ffn == FfnKind::gated_swiglu;
#pragma omp parallel for schedule(static) if (N * c.ffn_dim > kLeastWork)
  for (std::int64_t n = 0; n < N; ++n) {
    const float* const gate = gate_.data() + n * g_ld;
    dot_kernels().activate(h_.data() + n * f_ld, gated ? gate : nullptr,
                           gated ? gate + c.ffn_dim : gate, up_.data() + n * f_ld, c.ffn_dim);
  }
  const Product out[] = {{out_.data(), D_ld, h_.data(), f_ld, N, &weights.down}};
  multiply(out);
  for (std::int64_t i = 0; i < N * D_ld; ++i)
    x_[static_cast<std::size_t>(i)] += out_[static_cast<std::size_t>(i)];
}

std::int64_t Decoder::forward(std::span<const DecodeRow> rows) {
  const ModelConfig& c = weights_.model();
  const auto N = static_cast<std::int64_t>(rows.size());
  const std::int64_t D = c.d_model, ld = padded(D);
  reserve(N);
  for (std::int64_t n = 0; n < N; ++n) {
    const DecodeRow& row = rows[static_cast<std::size_t>(n)];
    OPENMOE_CHECK(
        row.sequence >= 0 && row.sequence < options_.max_sequences && row.position >= 0 &&
            row.position < options_.max_length && row.token >= 0 && row.token < c.vocab_size,
        "token ", row.token, " at position ", row.position, " of sequence ", row.sequence);
    weights_.embedding().get_row(row.token, x_.data() + n * ld);
  }
  for (std::size_t i = 0; i < weights_.layers().size(); ++i) {
    const LayerWeights& layer = weights_.layers()[i];
    norm(layer.attention_norm, N);
    attention(layer, caches_[i], rows);
    if (layer.is_moe) {
      norm(layer.moe_norm, N);  // the parallel residual FFN reads the same y
      moe(layer, N);
    }
    if (!layer.ffn.norm.empty()) norm(layer.ffn.norm, N);
    ffn(layer.ffn, N);
  }
  norm(weights_.final_norm(), N);
  num_wanted_ = 0;  // their rows move to the front of y
  for (std::int64_t n = 0; n < N; ++n) {
    if (!rows[static_cast<std::size_t>(n)].wants_logits) continue;
    std::copy_n(y_.data() + n * ld, ld, y_.data() + num_wanted_++ * ld);
  }
  return num_wanted_;
}

std::span<float> Decoder::logits(std::int64_t begin, std::int64_t end) {
  OPENMOE_CHECK(0 <= begin && begin <= end && end <= num_wanted_, "rows [", begin, ", ", end,
                ") of ", num_wanted_);
  const std::int64_t V = weights_.model().vocab_size, ld = padded(weights_.model().d_model);
  const auto size = static_cast<std::size_t>((end - begin) * V);
  if (logits_.size() < size) logits_.resize(size);
  const Product head[] = {
      {logits_.data(), V, y_.data() + begin * ld, ld, end - begin, &weights_.head()}};
  multiply(head);
  return {logits_.data(), size};
}

void Decoder::copy_prefix(std::int64_t to, std::int64_t from, std::int64_t length) {
  if (to == from || length == 0) return;
  const ModelConfig& c = weights_.model();
  for (LayerCache& cache : caches_) {
    for (std::int64_t head = 0; head < c.num_heads; ++head) {
      for (float* const data : {cache.keys.as<float>(), cache.values.as<float>()}) {
        const auto slot = [&](std::int64_t sequence) {
          return data + (sequence * c.num_heads + head) * cache_length_ * c.head_dim;
        };
        std::copy_n(slot(from), padded(length) * c.head_dim, slot(to));
      }
    }
  }
}

}  // namespace openmoe::infer
