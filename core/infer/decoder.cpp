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
constexpr std::int64_t kLongRow = 1 << 16;    // elements that are worth a gather of their own

void resize(std::vector<float>& rows, std::int64_t count, std::int64_t width) {
  rows.assign(static_cast<std::size_t>(count * padded(width)), 0.0f);
}

}  // namespace

Decoder::Decoder(const DecodeWeights& weights, const RoutingConfig& routing,
                 const DecodeOptions& options, DecodeGroups groups)
    : weights_(weights),
      routing_(routing),
      options_(options),
      groups_(std::move(groups)),
      cache_length_(padded(options.max_length)) {
  const ModelConfig& c = weights.model();
  OPENMOE_CHECK(options.max_sequences > 0 && options.max_length > 0, options.max_sequences,
                " sequences of ", options.max_length);
  OPENMOE_CHECK(
      weights.splits().vocab.num_ranks() == 1 || (groups_.tensor_sum && groups_.tensor_gather),
      "weights of one of several ranks, without the others");
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
  const std::int64_t bytes = options.max_sequences * cache_length_ *
                             weights.splits().attention.size() * size_of(DType::f32);
  for (std::int64_t i = 0; i < c.num_layers; ++i)
    caches_.push_back(LayerCache{Block(bytes), Block(bytes)});
  scores_.resize(static_cast<std::size_t>(omp_get_max_threads() * cache_length_));
  reserve(options.max_sequences);
}

void Decoder::reserve(std::int64_t rows) {
  if (rows <= reserved_) return;
  reserved_ = (rows + kReserveStep - 1) / kReserveStep * kReserveStep;
  const ModelConfig& c = weights_.model();
  const std::int64_t heads = weights_.splits().attention.size(), f = weights_.splits().ffn.size();
  const std::int64_t gate = f * (c.gate_dim() / c.ffn_dim);
  for (auto* row : {&x_, &y_, &out_}) resize(*row, reserved_, c.d_model);
  for (auto* row : {&q_, &k_, &v_}) resize(*row, reserved_, heads);
  resize(o_, reserved_, c.attention_dim());
  resize(gate_, reserved_, gate);
  resize(up_, reserved_, f);
  resize(h_, reserved_, c.ffn_dim);
  if (c.num_moe_layers() == 0) return;
  for (auto* row : {&expert_x_, &expert_out_}) resize(*row, 2 * reserved_, c.d_model);
  resize(expert_gate_, 2 * reserved_, gate);
  resize(expert_up_, 2 * reserved_, f);
  resize(expert_h_, 2 * reserved_, c.ffn_dim);
  resize(router_logits_, reserved_, c.num_experts);
  assignments_.resize(static_cast<std::size_t>(2 * reserved_));
}

void Decoder::gather(const Split& split, float* rows, std::int64_t ld, std::int64_t N,
                     bool of_experts) {
  const bool sums = of_experts && groups_.expert_sum;
  if (N == 0 || (!sums && split.num_ranks() == 1)) return;
  const auto whole = static_cast<std::size_t>(split.total());
  const auto share = [&](std::span<float> all, std::span<const std::int64_t> counts,
                         std::int64_t begin, std::int64_t size) {
    if (sums)
      groups_.expert_sum(
          all.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(size)));
    if (split.num_ranks() > 1) groups_.tensor_gather(all, counts);
  };
  if (N == 1 || split.total() >= kLongRow) {  // the pieces of one row stand where they belong
    for (std::int64_t n = 0; n < N; ++n)
      share({rows + n * ld, whole}, split.counts(), split.begin(), split.size());
    return;
  }
  if (pieces_.size() < whole * static_cast<std::size_t>(N))
    pieces_.resize(whole * static_cast<std::size_t>(N));
  for (std::int64_t n = 0; n < N; ++n)
    std::copy_n(rows + n * ld + split.begin(), split.size(),
                pieces_.data() + N * split.begin() + n * split.size());
  std::vector<std::int64_t> counts = split.counts();
  for (std::int64_t& count : counts) count *= N;
  share({pieces_.data(), whole * static_cast<std::size_t>(N)}, counts, N * split.begin(),
        N * split.size());
  const float* piece = pieces_.data();
  std::int64_t begin = 0;
  for (const std::int64_t size : split.counts()) {
    for (std::int64_t n = 0; n < N; ++n, piece += size)
      std::copy_n(piece, size, rows + n * ld + begin);
    begin += size;
  }
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
  const std::int64_t Dh = c.head_dim, half = Dh / 2, H = num_heads(), ld = padded(H * Dh);
#pragma omp parallel for schedule(static) if (rows.size() > 32)
  for (std::size_t n = 0; n < rows.size(); ++n) {
    const DecodeRow& row = rows[n];
    const float* const cos = rope_cos_.data() + row.position * half;
    const float* const sin = rope_sin_.data() + row.position * half;
    for (std::int64_t head = 0; head < H; ++head) {
      const std::int64_t at = static_cast<std::int64_t>(n) * ld + head * Dh;
      for (float* const x : {q_.data() + at, k_.data() + at}) {
        for (std::int64_t j = 0; j < half; ++j) {
          const float a = x[j], b = x[j + half];
          x[j] = a * cos[j] - b * sin[j];
          x[j + half] = b * cos[j] + a * sin[j];
        }
      }
      const std::int64_t slot = (row.sequence * H + head) * cache_length_ * Dh;
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
  const Split& columns = weights_.splits().attention;
  const std::int64_t Dh = c.head_dim, H = num_heads(), ld = padded(H * Dh),
                     D_ld = padded(c.d_model), o_ld = padded(c.attention_dim());
  const auto N = static_cast<std::int64_t>(rows.size());
  const Product qkv[] = {{q_.data(), ld, y_.data(), D_ld, N, &layer.q},
                         {k_.data(), ld, y_.data(), D_ld, N, &layer.k},
                         {v_.data(), ld, y_.data(), D_ld, N, &layer.v}};
  multiply(qkv);
  rotate_and_store(cache, rows);
  const DotKernels& kernels = dot_kernels();
  const float scale = c.logit_scale();
  std::int64_t attended = 0;
  for (const DecodeRow& row : rows) attended += row.position + 1;
#pragma omp parallel for schedule(dynamic, 1) if (attended * H * Dh > kLeastWork)
  for (std::int64_t unit = 0; unit < N * H; ++unit) {
    const std::int64_t n = unit / H, head = unit % H;
    const DecodeRow& row = rows[static_cast<std::size_t>(n)];
    const std::int64_t slot = (row.sequence * H + head) * cache_length_ * Dh;
    kernels.attend({.o = o_.data() + n * o_ld + columns.begin() + head * Dh,
                    .q = q_.data() + n * ld + head * Dh,
                    .keys = cache.keys.as<float>() + slot,
                    .values = cache.values.as<float>() + slot,
                    .length = row.position + 1,
                    .head_dim = Dh,
                    .scale = scale,
                    .scores = scores_.data() + omp_get_thread_num() * cache_length_});
  }
  gather(columns, o_.data(), o_ld, N);
  const Split& own = weights_.splits().d_model;
  const Product out[] = {{out_.data() + own.begin(), D_ld, o_.data(), o_ld, N, &layer.o}};
  multiply(out);
  gather(own, out_.data(), D_ld, N);
  for (std::int64_t i = 0; i < N * D_ld; ++i)
    x_[static_cast<std::size_t>(i)] += out_[static_cast<std::size_t>(i)];
}

void Decoder::ffn(const FfnWeights& weights, std::int64_t N) {
  const ModelConfig& c = weights_.model();
  const Split& own = weights_.splits().d_model;
  const Split& columns = weights_.splits().ffn;  // of h
  const std::int64_t f = columns.size();
  const std::int64_t D_ld = padded(c.d_model), g_ld = padded(weights.gate.out()), up_ld = padded(f),
                     h_ld = padded(c.ffn_dim);
  const Product in[] = {{gate_.data(), g_ld, y_.data(), D_ld, N, &weights.gate},
                        {up_.data(), up_ld, y_.data(), D_ld, N, &weights.up}};
  multiply(in);
  const bool gated = c.ffn == FfnKind::gated_swiglu;
#pragma omp parallel for schedule(static) if (N * f > kLeastWork)
  for (std::int64_t n = 0; n < N; ++n) {
    const float* const gate = gate_.data() + n * g_ld;
    dot_kernels().activate(h_.data() + n * h_ld + columns.begin(), gated ? gate : nullptr,
                           gated ? gate + f : gate, up_.data() + n * up_ld, f);
  }
  gather(columns, h_.data(), h_ld, N);
  const Product out[] = {{out_.data() + own.begin(), D_ld, h_.data(), h_ld, N, &weights.down}};
  multiply(out);
  gather(own, out_.data(), D_ld, N);
  for (std::int64_t i = 0; i < N * D_ld; ++i)
    x_[static_cast<std::size_t>(i)] += out_[static_cast<std::size_t>(i)];
}

void Decoder::embed(std::span<const DecodeRow> rows) {
  const ModelConfig& c = weights_.model();
  const Split& own = weights_.splits().vocab;
  const auto N = static_cast<std::int64_t>(rows.size());
  const std::int64_t ld = padded(c.d_model);
  for (std::int64_t n = 0; n < N; ++n) {
    const DecodeRow& row = rows[static_cast<std::size_t>(n)];
    float* const x = x_.data() + n * ld;
    OPENMOE_CHECK(
        row.sequence >= 0 && row.sequence < options_.max_sequences && row.position >= 0 &&
            row.position < options_.max_length && row.token >= 0 && row.token < c.vocab_size,
        "token ", row.token, " at position ", row.position, " of sequence ", row.sequence);
    const std::int64_t local = row.token - own.begin();
    if (local >= 0 && local < own.size())
      weights_.embedding().get_row(local, x);
    else  // what leaves any value as it is, zeros of either sign too
      std::fill_n(x, c.d_model, -0.0f);
  }
  if (own.num_ranks() > 1) groups_.tensor_sum({x_.data(), static_cast<std::size_t>(N * ld)});
}

std::int64_t Decoder::forward(std::span<const DecodeRow> rows) {
  const auto N = static_cast<std::int64_t>(rows.size());
  const std::int64_t ld = padded(weights_.model().d_model);
  reserve(N);
  embed(rows);
  for (std::size_t i = 0; i < weights_.layers().size(); ++i) {
    const LayerWeights& layer = weights_.layers()[i];
    norm(layer.attention_norm, N);
    attention(layer, caches_[i], rows);
    // Without a norm of its own a sublayer reads the same y as the one before.
    if (layer.is_moe) {
      if (!layer.moe_norm.empty()) norm(layer.moe_norm, N);
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
  const Split& own = weights_.splits().vocab;
  const Product head[] = {
      {logits_.data() + own.begin(), V, y_.data() + begin * ld, ld, end - begin, &weights_.head()}};
  multiply(head);
  gather(own, logits_.data(), V, end - begin);
  return {logits_.data(), size};
}

std::int64_t Decoder::cache_bytes() const {
  std::int64_t total = 0;
  for (const LayerCache& cache : caches_) total += cache.keys.bytes() + cache.values.bytes();
  return total;
}

void Decoder::copy_prefix(std::int64_t to, std::int64_t from, std::int64_t length) {
  if (to == from || length == 0) return;
  const ModelConfig& c = weights_.model();
  for (LayerCache& cache : caches_) {
    for (std::int64_t head = 0; head < num_heads(); ++head) {
      for (float* const data : {cache.keys.as<float>(), cache.values.as<float>()}) {
        const auto slot = [&](std::int64_t sequence) {
          return data + (sequence * num_heads() + head) * cache_length_ * c.head_dim;
        };
        std::copy_n(slot(from), padded(length) * c.head_dim, slot(to));
      }
    }
  }
}

}  // namespace openmoe::infer
