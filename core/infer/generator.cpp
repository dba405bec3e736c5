#include "core/infer/generator.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe::infer {
namespace {

constexpr std::int32_t kStart = 0;
constexpr std::int64_t kCallRows = 256;           // prompts are cut into calls of this many tokens
constexpr std::int64_t kLogitsFloats = 32 << 20;  // logits held at once
constexpr std::int64_t kLeastShared = 8;  // tokens in common that are worth a copy of the cache

bool ends_with(const std::vector<std::int32_t>& tokens, const std::vector<std::int32_t>& end) {
  return !end.empty() && tokens.size() >= end.size() &&
         std::equal(end.rbegin(), end.rend(), tokens.rbegin());
}

std::int64_t common_prefix(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b) {
  const auto size = std::min(a.size(), b.size());
  std::size_t i = 0;
  while (i < size && a[i] == b[i]) ++i;
  return static_cast<std::int64_t>(i);
}

}  // namespace

const char* name_of(FinishReason reason) {
  if (reason == FinishReason::eos) return "eos";
  return reason == FinishReason::stop ? "stop" : "length";
}

struct Generator::Active {
  std::size_t request = 0;
  std::int64_t slot = 0;
  std::vector<std::int32_t> tokens;  // start, prompt, generated
  std::int64_t done = 0;             // tokens that are in the cache
  std::vector<float> logits;         // after the last token
  bool is_finished = false;
};

Generator::Generator(Decoder& decoder, std::int64_t num_ids, bool use_cache)
    : decoder_(decoder), num_ids_(num_ids), use_cache_(use_cache) {}

// forward in calls of kCallRows, or in one where rows compete for experts; `use` gets the logits of
// each row that wants them, with its number among those.
void Generator::run_rows(std::span<const DecodeRow> rows,
                         const std::function<void(std::int64_t, std::span<float>)>& use) {
  const bool in_one_call = decoder_.options().capacity.has_value();
  const auto V = static_cast<std::size_t>(decoder_.model().vocab_size);
  const std::int64_t most = std::max<std::int64_t>(1, kLogitsFloats / static_cast<std::int64_t>(V));
  std::int64_t wanted_before = 0;
  for (std::size_t begin = 0; begin < rows.size();) {
    const std::size_t count =
        in_one_call ? rows.size() : std::min<std::size_t>(kCallRows, rows.size() - begin);
    const std::int64_t wanted = decoder_.forward(rows.subspan(begin, count));
    for (std::int64_t first = 0; first < wanted; first += most) {
      const std::int64_t last = std::min(wanted, first + most);
      const std::span<float> logits = decoder_.logits(first, last);
      for (std::int64_t i = first; i < last; ++i)
        use(wanted_before + i, logits.subspan(static_cast<std::size_t>(i - first) * V, V));
    }
    wanted_before += wanted;
    begin += count;
  }
}

void Generator::admit(std::span<const GenerationRequest> requests, std::size_t& next,
                      std::vector<Active>& active) {
  const auto slots = static_cast<std::size_t>(decoder_.options().max_sequences);
  if (decoder_.options().capacity && !active.empty()) return;
  while (next < requests.size() && active.size() < slots) {
    Active sequence;
    sequence.request = next++;
    sequence.tokens = {kStart};
    const std::vector<std::int32_t>& prompt = requests[sequence.request].prompt;
    sequence.tokens.insert(sequence.tokens.end(), prompt.begin(), prompt.end());
    const auto is_taken = [&] {
      return std::any_of(active.begin(), active.end(),
                         [&](const Active& a) { return a.slot == sequence.slot; });
    };
    while (is_taken()) ++sequence.slot;
    active.push_back(std::move(sequence));
  }
}

// The logits after the last token of every sequence.
void Generator::compute(std::vector<Active>& active) {
  std::vector<DecodeRow> rows;
  for (Active& sequence : active) {
    if (!use_cache_) sequence.done = 0;
    const auto size = static_cast<std::int64_t>(sequence.tokens.size());
    for (std::int64_t t = sequence.done; t < size; ++t)
      rows.push_back(
          {sequence.slot, t, sequence.tokens[static_cast<std::size_t>(t)], t + 1 == size});
    sequence.done = size;
  }
  run_rows(rows, [&](std::int64_t index, std::span<float> logits) {
    active[static_cast<std::size_t>(index)].logits.assign(logits.begin(), logits.end());
  });
}

// Takes the next token of a sequence. Returns whether the sequence goes on.
bool Generator::accept(std::span<const GenerationRequest> requests, Active& sequence,
                       GenerationResult& result, const OnToken& on_token) {
  const GenerationRequest& request = requests[sequence.request];
  std::vector<float> kept;
  if (request.num_log_probs >= 0) kept = sequence.logits;  // before penalties
  const std::int32_t token =
      sample_token(sequence.logits, sequence.tokens, request.sampling, num_ids_, request.stream,
                   static_cast<std::uint64_t>(result.tokens.size()));
  if (token == request.eos) {
    result.finish = FinishReason::eos;
    return false;
  }
  sequence.tokens.push_back(token);
  result.tokens.push_back(token);
  if (request.num_log_probs >= 0)
    result.scores.push_back(score_token(kept, token, request.num_log_probs));
  for (const std::vector<std::int32_t>& stop : request.stop_sequences) {
    if (!ends_with(result.tokens, stop)) continue;
    result.tokens.resize(result.tokens.size() - stop.size());
    if (request.num_log_probs >= 0) result.scores.resize(result.tokens.size());
    result.finish = FinishReason::stop;
    return false;
  }
  if (on_token && on_token(sequence.request, result.tokens)) {
    result.finish = FinishReason::stop;
    return false;
  }
  return static_cast<std::int64_t>(result.tokens.size()) < request.max_new_tokens &&
         static_cast<std::int64_t>(sequence.tokens.size()) < decoder_.options().max_length;
}

std::vector<GenerationResult> Generator::generate(std::span<const GenerationRequest> requests,
                                                  const OnToken& on_token) {
  const std::int64_t room = decoder_.options().max_length;
  for (const GenerationRequest& request : requests)
    if (static_cast<std::int64_t>(request.prompt.size()) + 1 > room)
      throw UserError(concat("a prompt of ", request.prompt.size(),
                             " tokens and its start exceed the longest sequence, ", room,
                             " positions; shorten it, or raise --max-length"));
  std::vector<GenerationResult> results(requests.size());
  std::vector<Active> active;
  std::size_t next = 0;
  for (;;) {
    admit(requests, next, active);
    std::erase_if(active, [&](const Active& a) { return requests[a.request].max_new_tokens <= 0; });
    if (active.empty() && next == requests.size()) return results;
    if (active.empty()) continue;
    compute(active);
    for (Active& sequence : active)
      sequence.is_finished = !accept(requests, sequence, results[sequence.request], on_token);
    std::erase_if(active, [](const Active& a) { return a.is_finished; });
  }
}

std::vector<std::vector<TokenScore>> Generator::score(std::span<const ScoreRequest> requests) {
  const std::int64_t slots = decoder_.options().max_sequences;
  const bool may_share = use_cache_ && !decoder_.options().capacity;
  std::vector<std::vector<TokenScore>> results(requests.size());
  for (const ScoreRequest& request : requests)
    if (static_cast<std::int64_t>(request.tokens.size()) > decoder_.options().max_length)
      throw UserError(concat("a text of ", request.tokens.size(),
                             " tokens exceeds the longest sequence, ",
                             decoder_.options().max_length, " positions"));
  for (std::size_t begin = 0; begin < requests.size(); begin += static_cast<std::size_t>(slots)) {
    const std::size_t count =
        std::min<std::size_t>(static_cast<std::size_t>(slots), requests.size() - begin);
    // Row t predicts tokens[t] and is computed from tokens[t - 1]. Those that begin like an earlier
    // text of the batch wait for it and take its rows.
    std::vector<std::int64_t> leader(count, -1), shared(count, 0);
    for (std::size_t i = 1; i < count && may_share; ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        if (leader[j] >= 0) continue;
        const auto& tokens = requests[begin + i].tokens;
        const std::int64_t same =
            std::min(common_prefix(tokens, requests[begin + j].tokens), requests[begin + i].first);
        if (same < kLeastShared || same <= shared[i]) continue;
        leader[i] = static_cast<std::int64_t>(j);
        shared[i] = same;
      }
    }
    for (const bool followers : {false, true}) {
      std::vector<DecodeRow> rows;
      std::vector<std::pair<std::size_t, std::int64_t>> wanted;  // (index in the batch, token)
      for (std::size_t i = 0; i < count; ++i) {
        if ((leader[i] >= 0) != followers) continue;
        if (followers) decoder_.copy_prefix(static_cast<std::int64_t>(i), leader[i], shared[i]);
        const ScoreRequest& request = requests[begin + i];
        for (std::int64_t t = shared[i]; t < static_cast<std::int64_t>(request.tokens.size());
             ++t) {
          const std::int32_t token =
              t == 0 ? kStart : request.tokens[static_cast<std::size_t>(t - 1)];
          rows.push_back({static_cast<std::int64_t>(i), t, token, t >= request.first});
          if (t >= request.first) wanted.emplace_back(i, t);
        }
      }
      run_rows(rows, [&](std::int64_t index, std::span<float> logits) {
        const auto& [i, t] = wanted[static_cast<std::size_t>(index)];
        const ScoreRequest& request = requests[begin + i];
        results[begin + i].push_back(
            score_token(logits, request.tokens[static_cast<std::size_t>(t)], request.num_top));
      });
    }
  }
  return results;
}

}  // namespace openmoe::infer
