// The decoder beside the model of core/model, and beside itself: batches, cuts, the cache and ranks
// must not matter.
#include "core/infer/decoder.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "core/arena.h"
#include "core/base/rng.h"
#include "core/cpu/cpu_features.h"
#include "core/cpu/cpu_ops.h"
#include "core/infer/dot_kernels.h"
#include "core/infer/generator.h"
#include "core/model/model.h"
#include "core/moe/local_exchange.h"
#include "test/support/catch.h"
#include "test/support/thread_ranks.h"

namespace openmoe {
namespace {

using infer::DecodeRow;

// Sizes that are no multiples of a panel or a chunk.
Recipe small_recipe(bool released) {
  Recipe recipe;
  recipe.model.vocab_size = 61;
  recipe.model.num_layers = 3;
  recipe.model.d_model = 36;
  recipe.model.num_heads = 3;
  recipe.model.head_dim = 14;
  recipe.model.ffn_dim = 44;
  recipe.model.num_experts = 4;
  recipe.model.moe_interval = released ? 2 : 1;
  recipe.model.embedding_init_std = 1.0;
  recipe.model.router_init_std = 0.5;
  recipe.routing.eval_capacity_factor = 100.0;  // nothing is dropped
  if (!released) {
    recipe.model.ffn = FfnKind::swiglu;
    recipe.model.residual_ffn = ResidualFfn::parallel;
    recipe.model.attention_scale = AttentionScale::rsqrt;
    recipe.model.tied_embedding = true;
    recipe.routing.normalize_gates = true;
  }
  recipe.data.sequence_length = 24;
  recipe.data.batch_rows = 2;
  recipe.routing.group_tokens = 48;
  return recipe;
}

// The model of core/model with random weights.
struct Reference {
  explicit Reference(const Recipe& wanted)
      : recipe(wanted),
        ops(make_cpu_ops()),
        params(recipe.model, recipe.optimizer),
        exchange(Model::exchange_shape(recipe, 2, 1)),
        model(*ops, recipe, params, exchange, tensor, 2) {
    Arena dry;
    params.allocate(dry, GradientMemory::none);
    model.allocate(dry, false);
    arena = std::make_unique<Arena>(*ops, dry.used_bytes());
    params.allocate(*arena, GradientMemory::none);
    model.allocate(*arena, false);
    params.initialize(*ops, 5);
  }

  // Logits (2, T, V) of two rows of ids.
  std::vector<float> logits(const std::vector<std::int32_t>& ids) {
    Batch batch;
    batch.resize(2, recipe.data.sequence_length);
    batch.inputs = ids;
    std::fill(batch.segment_ids.begin(), batch.segment_ids.end(), 1);
    const std::int64_t V = recipe.model.vocab_size;
    std::vector<float> all(ids.size() * static_cast<std::size_t>(V));
    model.observe_logits([&](std::int64_t first, Tensor chunk) {
      std::copy_n(chunk.as<float>(), chunk.num_elements(), all.data() + first * V);
    });
    StepSums sums(recipe.model.num_moe_layers(), recipe.model.num_experts);
    model.evaluate(batch, sums);
    return all;
  }

  Recipe recipe;
  std::unique_ptr<Ops> ops;
  ParamTable params;
  LocalExchange exchange;
  LocalTensorGroup tensor;
  Model model;
  std::unique_ptr<Arena> arena;
};

std::vector<std::int32_t> random_ids(std::size_t count) {
  Rng rng(3, stream_id("decoder test"));
  std::vector<std::int32_t> ids(count);
  for (auto& id : ids) id = static_cast<std::int32_t>(rng.next_below(61));
  return ids;
}

std::vector<DecodeRow> rows_of(const std::vector<std::int32_t>& ids, std::int64_t length) {
  std::vector<DecodeRow> rows;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    rows.push_back({at / length, at % length, ids[i], true});
  }
  return rows;
}

// Logits of calls of `step` rows each.
std::vector<float> decode(infer::Decoder& decoder, const std::vector<DecodeRow>& rows,
                          std::size_t step) {
  std::vector<float> all;
  for (std::size_t begin = 0; begin < rows.size(); begin += step) {
    const std::size_t count = std::min(step, rows.size() - begin);
    const std::int64_t wanted = decoder.forward(std::span(rows).subspan(begin, count));
    const std::span<float> logits = decoder.logits(0, wanted);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

std::int64_t router_bytes(const infer::DecodeWeights& weights) {
  std::int64_t total = 0;
  for (const infer::LayerWeights& layer : weights.layers()) total += layer.router.bytes();
  return total;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return largest;
}

}  // namespace

TEST_CASE("the decoder computes the model's logits, in any cut and batch to the bit", "[infer]") {
  const std::string semantics = GENERATE("released", "paper", "parallel block");
  INFO(semantics);
  Recipe recipe = small_recipe(semantics == "released");
  if (semantics == "parallel block") {
    recipe.model.parallel_block = true;
    recipe.model.moe_interval = 2;
  }
  Reference reference(recipe);
  const std::int64_t length = reference.recipe.data.sequence_length;
  const auto ids = random_ids(static_cast<std::size_t>(2 * length));
  const std::vector<float> expected = reference.logits(ids);
  infer::DecodeWeights weights(reference.recipe.model, DType::f32, 1, 0);
  weights.set_all(reference.params);
  infer::Decoder decoder(weights, reference.recipe.routing,
                         {.max_sequences = 2, .max_length = length});

  const std::vector<DecodeRow> rows = rows_of(ids, length);
  const std::vector<float> at_once = decode(decoder, rows, rows.size());
  CHECK(largest_difference(at_once, expected) < 2e-5);
  for (const std::size_t step : {std::size_t{1}, std::size_t{5}, std::size_t{24}})
    CHECK(decode(decoder, rows, step) == at_once);

  // Both sequences advance together, a token each per call.
  std::vector<float> together(at_once.size());
  const auto V = static_cast<std::size_t>(reference.recipe.model.vocab_size);
  for (std::int64_t t = 0; t < length; ++t) {
    const DecodeRow pair[] = {rows[static_cast<std::size_t>(t)],
                              rows[static_cast<std::size_t>(length + t)]};
    decoder.forward(pair);
    const std::span<float> logits = decoder.logits(0, 2);
    for (std::size_t row = 0; row < 2; ++row)
      std::copy_n(
          logits.begin() + static_cast<std::ptrdiff_t>(row * V), V,
          together.begin() +
              static_cast<std::ptrdiff_t>(
                  (row * static_cast<std::size_t>(length) + static_cast<std::size_t>(t)) * V));
  }
  CHECK(together == at_once);
}

TEST_CASE("every instruction set computes the same logits, to rounding", "[infer]") {
  Reference reference(small_recipe(true));
  const auto ids = random_ids(48);
  const std::vector<float> expected = reference.logits(ids);
  infer::DecodeWeights weights(reference.recipe.model, DType::f32, 1, 0);
  weights.set_all(reference.params);
  infer::Decoder decoder(weights, reference.recipe.routing, {.max_sequences = 2, .max_length = 24});
  for (const cpu::CpuIsa isa : cpu::available_cpu_isas()) {
    const cpu::ScopedCpuIsa forced(isa);
    INFO(cpu::name_of(isa));
    CHECK(largest_difference(decode(decoder, rows_of(ids, 24), 48), expected) < 2e-5);
  }
}

TEST_CASE("bf16 storage computes with the rounded weights", "[infer]") {
  Reference reference(small_recipe(true));
  for (Param& param : reference.params.params()) {
    if (param.local_shape.rank == 1 || param.name.ends_with("gate_weight")) continue;  // stay f32
    float* const values = param.value.as<float>();
    for (std::int64_t i = 0; i < param.value.num_elements(); ++i)
      values[i] = static_cast<float>(BFloat16(values[i]));
  }
  const auto ids = random_ids(48);
  const std::vector<float> expected = reference.logits(ids);
  infer::DecodeWeights weights(reference.recipe.model, DType::bf16, 1, 0);
  weights.set_all(reference.params);
  infer::Decoder decoder(weights, reference.recipe.routing, {.max_sequences = 2, .max_length = 24});
  CHECK(largest_difference(decode(decoder, rows_of(ids, 24), 48), expected) < 2e-5);
}

TEST_CASE("with the port's capacity the decoder drops what the model drops", "[infer]") {
  Recipe recipe = small_recipe(true);
  recipe.routing.capacity_counts = CapacityCounts::port;
  recipe.routing.eval_capacity_factor = 0.6;
  Reference reference(recipe);
  const auto ids = random_ids(48);
  const std::vector<float> expected = reference.logits(ids);
  infer::DecodeWeights weights(recipe.model, DType::f32, 1, 0);
  weights.set_all(reference.params);
  infer::Decoder decoder(weights, recipe.routing,
                         {.max_sequences = 2, .max_length = 24, .capacity = CapacityCounts::port});
  CHECK(largest_difference(decode(decoder, rows_of(ids, 24), 48), expected) < 2e-5);
  CHECK(decoder.num_dropped() > 0);
}

TEST_CASE("experts and matrices spread over ranks give the same bits", "[infer]") {
  const auto kind = GENERATE(as<std::string>(), "released", "paper", "dense");
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  Recipe recipe = small_recipe(kind != "paper");
  if (kind == "dense") recipe.model.moe_interval = 0;
  Reference reference(recipe);
  const std::vector<DecodeRow> rows = rows_of(random_ids(48), 24);
  // Calls of many rows, of few and of one; and texts that continue each other's cache.
  const auto run = [&](const infer::DecodeWeights& weights, infer::DecodeGroups groups) {
    infer::Decoder decoder(weights, recipe.routing, {.max_sequences = 2, .max_length = 24},
                           std::move(groups));
    std::vector<float> all;
    for (const std::size_t step : {std::size_t{48}, std::size_t{5}, std::size_t{1}})
      for (const float logit : decode(decoder, rows, step)) all.push_back(logit);
    const auto ids = random_ids(20);
    const infer::ScoreRequest texts[] = {{ids, 10, 0}, {ids, 12, 0}};
    for (const auto& scores : infer::Generator(decoder, 61).score(texts))
      for (const infer::TokenScore& score : scores) all.push_back(score.log_prob);
    return all;
  };
  infer::DecodeWeights whole(recipe.model, dtype, 1, 0);
  whole.set_all(reference.params);
  const std::vector<float> expected = run(whole, {});

  struct Grid {
    std::int64_t ep, tp;
  };
  for (const auto& [ep, tp] : {Grid{1, 2}, Grid{2, 1}, Grid{2, 2}, Grid{4, 1}, Grid{1, 3}}) {
    if (kind == "dense" && ep > 1) continue;
    INFO(kind << ", ep " << ep << ", tp " << tp);
    test::ThreadRanks ranks(ep, tp);
    std::vector<std::vector<float>> found(static_cast<std::size_t>(ep * tp));
    std::vector<std::unique_ptr<infer::DecodeWeights>> parts;
    std::int64_t all_bytes = 0;
    for (std::int64_t rank = 0; rank < ep * tp; ++rank) {
      parts.push_back(std::make_unique<infer::DecodeWeights>(recipe.model, dtype, ep, rank / tp, tp,
                                                             rank % tp));
      parts.back()->set_all(reference.params);
      all_bytes += parts.back()->bytes();
    }
    ranks.run([&](std::int64_t rank, infer::DecodeGroups groups) {
      const auto index = static_cast<std::size_t>(rank);
      found[index] = run(*parts[index], std::move(groups));
    });
    for (const std::vector<float>& logits : found) CHECK(logits == expected);
    // Over tp only routers are held twice.
    if (ep == 1) CHECK(all_bytes - tp * router_bytes(whole) == whole.bytes() - router_bytes(whole));
  }
}

TEST_CASE("each rank of a tensor group takes less of weights, cache and checkpoint", "[infer]") {
  Recipe recipe = small_recipe(true);
  recipe.model.num_heads = 4;
  recipe.model.head_dim = 16;  // whole panels and chunks: no padding
  recipe.model.d_model = 64;
  recipe.model.ffn_dim = 64;
  recipe.model.vocab_size = 64;
  recipe.model.num_experts = 8;
  const ParamTable table(recipe.model, recipe.optimizer);
  const auto bytes_read = [&](const infer::DecodeWeights& weights) {
    std::int64_t elements = 0;
    for (const Param& param : table.params())
      for (const infer::ParamBlock& block : weights.blocks(param))
        elements += (block.end - block.begin) * (param.global_shape.rank == 1 ? 1 : block.width()) *
                    (param.global_shape.rank == 3 ? param.global_shape[1] : 1);
    return 4 * elements;
  };
  const infer::DecodeWeights whole(recipe.model, DType::f32, 1, 0);
  const infer::Decoder alone(whole, recipe.routing, {.max_sequences = 2, .max_length = 32});
  CHECK(bytes_read(whole) == 4 * table.num_parameters());
  std::int64_t norm_bytes = 0;
  for (const Param& param : table.params())
    if (param.global_shape.rank == 1) norm_bytes += 4 * param.global_shape[0];
  for (const std::int64_t rank : {0, 1, 2, 3}) {
    const infer::DecodeWeights part(recipe.model, DType::f32, 1, 0, 4, rank);
    CHECK(4 * (part.bytes() - router_bytes(part)) == whole.bytes() - router_bytes(whole));
    CHECK(bytes_read(part) == part.bytes() + norm_bytes);
    infer::DecodeGroups groups{{}, [](auto) {}, [](auto, auto) {}};
    const infer::Decoder decoder(part, recipe.routing, {.max_sequences = 2, .max_length = 32},
                                 groups);
    CHECK(4 * decoder.cache_bytes() == alone.cache_bytes());
  }
}

TEST_CASE("a split leaves nothing out and gives every rank whole units", "[infer]") {
  for (const std::int64_t total : {8, 61, 64, 100})
    for (const std::int64_t num_ranks : {1, 2, 3, 5}) {
      std::int64_t next = 0;
      for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
        const infer::Split split(total, 8, num_ranks, rank);
        CHECK(split.begin() == next);
        CHECK(split.counts()[static_cast<std::size_t>(rank)] == split.size());
        CHECK(std::abs(split.size() * num_ranks - total) <= 8 * num_ranks);
        next += split.size();
        CHECK((next == total || next % 8 == 0));
      }
      CHECK(next == total);
    }
  ModelConfig model = small_recipe(true).model;
  CHECK(infer::TensorSplits::most_ranks(model) == 3);  // heads
  model.num_heads = 12;
  CHECK(infer::TensorSplits::most_ranks(model) == 5);  // of d_model 36 in panels of 8
}

TEST_CASE("generation with the cache equals recomputation, and batches change nothing", "[infer]") {
  const bool sampled = GENERATE(false, true);
  Reference reference(small_recipe(true));
  infer::DecodeWeights weights(reference.recipe.model, DType::f32, 1, 0);
  weights.set_all(reference.params);
  std::vector<infer::GenerationRequest> requests;
  for (std::uint64_t i = 0; i < 5; ++i) {
    infer::GenerationRequest request;
    const auto ids = random_ids(40);
    request.prompt.assign(ids.begin() + static_cast<std::ptrdiff_t>(i),
                          ids.begin() + static_cast<std::ptrdiff_t>(2 * i + 3));
    request.max_new_tokens = 9;
    request.stream = i;
    if (sampled)
      request.sampling = {
          .temperature = 0.9, .top_k = 20, .top_p = 0.95, .repetition_penalty = 1.3};
    requests.push_back(request);
  }
  const auto run = [&](std::int64_t slots, bool use_cache) {
    infer::Decoder decoder(weights, reference.recipe.routing,
                           {.max_sequences = slots, .max_length = 24});
    std::vector<std::vector<std::int32_t>> tokens;
    for (const auto& result : infer::Generator(decoder, 61, use_cache).generate(requests))
      tokens.push_back(result.tokens);
    return tokens;
  };
  const auto expected = run(1, false);
  CHECK(expected[0].size() == 9);
  CHECK(run(1, true) == expected);
  CHECK(run(2, true) == expected);
  CHECK(run(5, true) == expected);
}

TEST_CASE("greedy generation is the argmax of the model's logits", "[infer]") {
  Reference reference(small_recipe(true));
  infer::DecodeWeights weights(reference.recipe.model, DType::f32, 1, 0);
  weights.set_all(reference.params);
  infer::Decoder decoder(weights, reference.recipe.routing, {.max_sequences = 1, .max_length = 24});
  infer::GenerationRequest request;
  request.prompt = {7, 9, 11};
  request.max_new_tokens = 20;
  request.eos = -1;
  const infer::GenerationRequest one[] = {request};
  const auto result = infer::Generator(decoder, 61).generate(one);
  REQUIRE(result[0].tokens.size() == 20);
  std::vector<std::int32_t> ids{0, 7, 9, 11};
  ids.insert(ids.end(), result[0].tokens.begin(), result[0].tokens.end());
  ids.resize(48, 0);
  const std::vector<float> logits = reference.logits(ids);
  for (std::size_t i = 0; i < 20; ++i) {
    const auto begin = logits.begin() + static_cast<std::ptrdiff_t>((3 + i) * 61);
    CHECK(std::max_element(begin + 1, begin + 61) - begin == result[0].tokens[i]);
  }
}

TEST_CASE("stop sequences, eos and length end a sequence", "[infer]") {
  Reference reference(small_recipe(true));
  infer::DecodeWeights weights(reference.recipe.model, DType::f32, 1, 0);
  weights.set_all(reference.params);
  infer::Decoder decoder(weights, reference.recipe.routing, {.max_sequences = 2, .max_length = 24});
  infer::Generator generator(decoder, 61);
  infer::GenerationRequest request;
  request.prompt = {7, 9, 11};
  request.max_new_tokens = 12;
  request.eos = -1;
  const auto run = [&] {
    const infer::GenerationRequest one[] = {request};
    return generator.generate(one)[0];
  };
  const infer::GenerationResult free = run();
  CHECK(free.finish == infer::FinishReason::length);
  REQUIRE(free.tokens.size() == 12);
  request.max_new_tokens = 100;
  CHECK(run().tokens.size() == 24 - 4);  // positions 0 to 23, with the last token not fed back

  const auto first = [&](std::int32_t token) {
    return std::find(free.tokens.begin(), free.tokens.end(), token) - free.tokens.begin();
  };
  request.eos = free.tokens[4];
  const auto by_eos = run();
  CHECK(by_eos.finish == infer::FinishReason::eos);
  CHECK(static_cast<std::ptrdiff_t>(by_eos.tokens.size()) == first(free.tokens[4]));
  request.eos = -1;
  request.stop_sequences = {{60, 60, 60, 60}, {free.tokens[5], free.tokens[6]}};
  const auto by_stop = run();
  CHECK(by_stop.finish == infer::FinishReason::stop);
  CHECK(by_stop.tokens.size() <= 5);
  CHECK(std::equal(by_stop.tokens.begin(), by_stop.tokens.end(), free.tokens.begin()));
}

TEST_CASE("scores are log-softmax values, whatever texts share", "[infer]") {
  Reference reference(small_recipe(true));
  infer::DecodeWeights weights(reference.recipe.model, DType::f32, 1, 0);
  weights.set_all(reference.params);
  infer::Decoder decoder(weights, reference.recipe.routing, {.max_sequences = 3, .max_length = 24});
  infer::Generator generator(decoder, 61);
  auto ids = random_ids(23);
  std::vector<infer::ScoreRequest> requests;
  for (std::int32_t i = 0; i < 4; ++i) {  // alike up to token 15
    ids[16] = 10 + i;
    requests.push_back({ids, 14, 3});
  }
  const auto scores = generator.score(requests);
  for (std::size_t i = 0; i < 4; ++i) {
    std::vector<std::int32_t> row{0};
    row.insert(row.end(), requests[i].tokens.begin(), requests[i].tokens.end());
    row.resize(48, 0);
    const std::vector<float> logits = reference.logits(row);
    REQUIRE(scores[i].size() == 23 - 14);
    for (std::size_t t = 14; t < 23; ++t) {
      double total = 0.0;
      for (std::size_t v = 0; v < 61; ++v)
        total += std::exp(static_cast<double>(logits[t * 61 + v]));
      const auto token = static_cast<std::size_t>(requests[i].tokens[t]);
      const double expected = static_cast<double>(logits[t * 61 + token]) - std::log(total);
      const infer::TokenScore& score = scores[i][t - 14];
      CHECK(static_cast<double>(score.log_prob) == Approx(expected).margin(3e-5));
      REQUIRE(score.top.size() == 3);
      CHECK(score.top[0].second >= score.top[1].second);
      CHECK(score.is_most_likely == (score.top[0].first == requests[i].tokens[t]));
    }
  }
}

TEST_CASE("sampling obeys top-k, top-p, the penalty and the seed", "[infer]") {
  const std::vector<float> logits{9.0f, 2.0f,  1.0f,
                                  0.0f, -1.0f, 8.0f};  // id 0 and id 5 may not be chosen
  const auto draw = [&](const infer::SamplingOptions& options, std::uint64_t index,
                        std::vector<std::int32_t> context = {}) {
    std::vector<float> copy = logits;
    return infer::sample_token(copy, context, options, 5, 1, index);
  };
  CHECK(draw({}, 0) == 1);
  CHECK(draw({.repetition_penalty = 3.0}, 0, {1}) == 2);  // 2 / 3 < 1
  std::vector<double> counts(6, 0.0);
  const int draws = 4000;
  for (int i = 0; i < draws; ++i) {
    const auto index = static_cast<std::uint64_t>(i);
    counts[static_cast<std::size_t>(draw({.temperature = 1.0}, index))] += 1.0 / draws;
    CHECK(draw({.temperature = 1.0, .top_k = 2}, index) <= 2);
    // p = 0.644, 0.237, 0.087, 0.032: the first two reach 0.8
    CHECK(draw({.temperature = 1.0, .top_p = 0.8}, index) <= 2);
  }
  CHECK(counts[1] == Approx(0.6439).margin(0.03));
  CHECK(counts[3] == Approx(0.0871).margin(0.02));
  CHECK(draw({.temperature = 1.0}, 5) == draw({.temperature = 1.0}, 5));
}

}  // namespace openmoe
