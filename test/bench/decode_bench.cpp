// Speed of generation beside the memory's: openmoe_bench_decode RECIPE [bf16|f32] [tokens] [prompt
// tokens]
//
// Random weights of the recipe's sizes, one sequence, greedy. A token must read every matrix once
// (of the experts two per MoE layer) and the cache of keys and values; the benchmark prints how
// many bytes that is per second, and how many the machine reads when it does nothing else, measured
// in turns with the tokens.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/config/recipe_io.h"
#include "core/infer/generator.h"

namespace openmoe {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Uniform values of the right deviation: fast, and no value is so small that arithmetic slows down.
void fill(infer::DecodeWeights& weights, const Recipe& recipe) {
  const ParamTable table(recipe.model, recipe.optimizer);
  std::vector<float> values;
  std::uint64_t seed = 1;
  for (const Param& param : table.params()) {
    const Shape& shape = param.global_shape;
    const std::int64_t row = shape.num_elements() / shape[0];
    const std::int64_t most =
        shape.rank == 3 ? 1 : std::max<std::int64_t>(1, (64 << 20) / (4 * row));
    for (std::int64_t begin = 0; begin < shape[0]; begin += most) {
      const std::int64_t rows = std::min(most, shape[0] - begin);
      values.resize(static_cast<std::size_t>(rows * row));
      const auto scale = static_cast<float>(param.init_std * std::sqrt(12.0));
      for (float& value : values) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        const auto unit = static_cast<float>(static_cast<double>(seed >> 33) / 2147483648.0 - 0.5);
        value = param.init == InitKind::ones ? 1.0f : scale * unit;
      }
      weights.set(param, infer::ParamBlock::rows(param, begin, begin + rows), values.data());
    }
  }
}

// Bytes per second that all threads read from `block`, each a stretch of its own.
double read_bandwidth(const infer::Block& block) {
  const auto* const words = block.as<std::uint64_t>();
  const std::int64_t count = block.bytes() / 8 / 64 * 64;
  std::uint64_t total = 0;
  const auto begin = Clock::now();
#pragma omp parallel for schedule(static) reduction(+ : total)
  for (std::int64_t i = 0; i < count; i += 64) {
    std::uint64_t sum = 0;
    for (std::int64_t j = 0; j < 64; ++j) sum += words[i + j];
    total += sum;
  }
  const double seconds = seconds_since(begin);
  if (total == 1) std::printf(" ");  // the sum must not be optimised away
  return static_cast<double>(count * 8) / seconds;
}

int run(const std::string& path, DType dtype, std::int64_t tokens, std::int64_t prompt) {
  const Recipe recipe = load_recipe(path);
  const ModelConfig& model = recipe.model;
  infer::DecodeWeights weights(model, dtype, 1, 0);
  fill(weights, recipe);
  infer::Decoder decoder(weights, recipe.routing,
                         {.max_sequences = 1, .max_length = prompt + tokens + 1});

  infer::Block buffer(512 << 20);
  for (std::int64_t i = 0; i < buffer.bytes() / 8; ++i)
    buffer.as<std::uint64_t>()[i] = static_cast<std::uint64_t>(i);
  read_bandwidth(buffer);

  std::vector<infer::DecodeRow> rows;
  for (std::int64_t t = 0; t < prompt; ++t)
    rows.push_back(
        {0, t, static_cast<std::int32_t>(2 + t * 7919 % (model.vocab_size - 2)), t + 1 == prompt});
  const auto prefill_begin = Clock::now();
  decoder.forward(rows);
  const double prefill = seconds_since(prefill_begin);
  std::vector<double> shares, times, peaks;
  for (std::int64_t t = 0; t < tokens; ++t) {
    double peak = 0.5 * read_bandwidth(buffer);
    const auto begin = Clock::now();
    const std::span<float> logits = decoder.logits(0, 1);
    const std::int32_t token =
        infer::sample_token(logits, {}, {}, model.vocab_size, 0, static_cast<std::uint64_t>(t));
    const infer::DecodeRow next[] = {{0, prompt + t, token, true}};
    decoder.forward(next);
    const double seconds = seconds_since(begin);
    peak += 0.5 * read_bandwidth(buffer);
    const double cache =
        static_cast<double>(2 * model.num_layers * model.attention_dim() * 4 * (prompt + t + 1));
    const double bytes = static_cast<double>(weights.bytes_per_token()) + cache;
    times.push_back(seconds);
    peaks.push_back(peak);
    shares.push_back(bytes / seconds / peak);
  }
  const auto median = [](std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  };
  std::printf("%s, %s weights: %.0f MB of matrices, %.1f MB read per token, and the cache\n",
              recipe.name.c_str(), name_of(dtype), static_cast<double>(weights.bytes()) / 1e6,
              static_cast<double>(weights.bytes_per_token()) / 1e6);
  std::printf("prompt      %lld tokens in %.3f s\n", static_cast<long long>(prompt), prefill);
  std::printf("generation  %.2f ms per token = %.1f tokens/s, %d threads (medians of %lld)\n",
              1e3 * median(times), 1.0 / median(times), omp_get_max_threads(),
              static_cast<long long>(tokens));
  std::printf("memory      %.2f GB/s read alone; generation at %.3f of it\n", median(peaks) / 1e9,
              median(shares));
  return 0;
}

}  // namespace
}  // namespace openmoe

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr,
                 "usage: openmoe_bench_decode RECIPE [bf16|f32] [tokens] [prompt tokens]\n");
    return 2;
  }
  try {
    const bool is_f32 = argc > 2 && std::string(argv[2]) == "f32";
    return openmoe::run(argv[1], is_f32 ? openmoe::DType::f32 : openmoe::DType::bf16,
                        argc > 3 ? std::atoll(argv[3]) : 32, argc > 4 ? std::atoll(argv[4]) : 64);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "openmoe_bench_decode: %s\n", error.what());
    return 1;
  }
}
