#include "core/routing/trace.h"

#include <algorithm>
#include <set>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

[[noreturn]] void fail(const std::string& place, const std::string& problem) {
  throw UserError(place + ": " + problem);
}

void check_layer(const RoutingTrace& trace, const LayerTrace& layer, const std::string& place) {
  const auto wanted = static_cast<std::size_t>(trace.num_tokens() * trace.top_k);
  if (layer.choice.size() != wanted)
    fail(place, concat("layer ", layer.layer, " has ", layer.choice.size(), " choices, allowed: ",
                       wanted, ", ", trace.top_k, " for each of ", trace.num_tokens(), " tokens"));
  if (!layer.gate.empty() && layer.gate.size() != wanted)
    fail(place, concat("layer ", layer.layer, " has ", layer.gate.size(),
                       " gates, allowed: ", wanted, " or none"));
  const auto K = static_cast<std::size_t>(trace.top_k);
  for (std::size_t i = 0; i < wanted; ++i) {
    const std::uint16_t expert = layer.choice[i];
    if (expert >= trace.num_experts)
      fail(place, concat("layer ", layer.layer, ", token ", i / K, ": expert ", expert,
                         ", allowed: 0 to ", trace.num_experts - 1));
    const auto begin = layer.choice.begin();
    if (std::find(begin + (i - i % K), begin + i, expert) != begin + i)
      fail(place, concat("layer ", layer.layer, ", token ", i / K, ": expert ", expert,
                         " is chosen twice; the choices of a token are different experts"));
  }
}

void check_sequences(const RoutingTrace& trace, const std::string& place) {
  const auto& offsets = trace.sequence_offsets;
  if (offsets.size() != trace.sequence_sources.size() + 1)
    fail(place, concat(offsets.size(), " sequence offsets for ", trace.sequence_sources.size(),
                       " sequences, allowed: one more than sequences"));
  if (offsets.front() != 0 || offsets.back() != trace.num_tokens())
    fail(place, concat("sequence offsets go from ", offsets.front(), " to ", offsets.back(),
                       ", allowed: from 0 to the number of tokens, ", trace.num_tokens()));
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
    const std::int64_t length = offsets[s + 1] - offsets[s];
    if (length < 0 || length > trace.sequence_length)
      fail(place, concat("sequence ", s, " has ", length,
                         " tokens, allowed: 0 to the sequence length, ", trace.sequence_length));
    const std::int32_t source = trace.sequence_sources[s];
    if (!(source >= 0 && static_cast<std::size_t>(source) < trace.sources.size()))
      fail(place, concat("sequence ", s, ": source ", source, ", allowed: 0 to ",
                         static_cast<std::int64_t>(trace.sources.size()) - 1));
  }
}

}  // namespace

std::vector<std::int32_t> RoutingTrace::positions() const {
  std::vector<std::int32_t> result(token_ids.size());
  for (std::size_t s = 0; s + 1 < sequence_offsets.size(); ++s)
    for (std::int64_t n = sequence_offsets[s]; n < sequence_offsets[s + 1]; ++n)
      result[static_cast<std::size_t>(n)] = static_cast<std::int32_t>(n - sequence_offsets[s]);
  return result;
}

std::vector<std::int32_t> RoutingTrace::previous_tokens() const {
  std::vector<std::int32_t> result(token_ids.size(), kNoToken);
  for (std::size_t s = 0; s + 1 < sequence_offsets.size(); ++s)
    for (std::int64_t n = sequence_offsets[s] + 1; n < sequence_offsets[s + 1]; ++n)
      result[static_cast<std::size_t>(n)] = token_ids[static_cast<std::size_t>(n - 1)];
  return result;
}

std::int64_t RoutingTrace::longest_sequence() const {
  std::int64_t most = 1;
  for (std::size_t s = 0; s + 1 < sequence_offsets.size(); ++s)
    most = std::max(most, sequence_offsets[s + 1] - sequence_offsets[s]);
  return most;
}

void RoutingTrace::check_num_experts(const std::string& place) const {
  if (num_experts < 2 || num_experts > kMaxExperts)
    fail(place, concat("num_experts is ", num_experts, ", allowed: 2 to ", kMaxExperts));
}

void RoutingTrace::check(const std::string& place) const {
  check_num_experts(place);
  if (top_k < 1 || top_k > num_experts)
    fail(place,
         concat(top_k, " choices per token, allowed: 1 to the number of experts, ", num_experts));
  if (layers.empty()) fail(place, "no layer, allowed: at least one");
  if (num_tokens() == 0) fail(place, "no token, allowed: at least one");
  check_sequences(*this, place);
  if (document.size() != token_ids.size())
    fail(place, concat(document.size(), " documents of tokens, allowed: one for each of ",
                       num_tokens(), " tokens"));
  for (std::size_t n = 0; n < token_ids.size(); ++n) {
    if (token_ids[n] < 0)
      fail(place, concat("token ", n, " has the id ", token_ids[n], ", allowed: 0 or more"));
    if (!(document[n] >= 0 && static_cast<std::size_t>(document[n]) < documents.size()))
      fail(place, concat("token ", n, ": document ", document[n], ", allowed: 0 to ",
                         static_cast<std::int64_t>(documents.size()) - 1));
  }
  for (std::size_t d = 0; d < documents.size(); ++d)
    if (documents[d].source < 0 || static_cast<std::size_t>(documents[d].source) >= sources.size())
      fail(place, concat("document ", d, ": source ", documents[d].source, ", allowed: 0 to ",
                         static_cast<std::int64_t>(sources.size()) - 1));
  std::set<std::int64_t> numbers;
  for (const LayerTrace& layer : layers) {
    if (!numbers.insert(layer.layer).second)
      fail(place, concat("layer ", layer.layer, " stands there twice, allowed: once"));
    check_layer(*this, layer, place);
  }
}

}  // namespace openmoe
