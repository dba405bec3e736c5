// RoutingTrace: what routers chose for the tokens of a text, and where each token stood: all that
// the statistics of this folder read. It holds choices before any drop; drops are a function of
// them (drops.h), so that any capacity can be studied afterwards. From a checkpoint
// (apps/observe_routing.h) or from a log of any system (data/routing_log.h).
//
// Here N is the number of tokens, K the choices per token, in falling order of probability.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace openmoe {

// Choices of one MoE layer.
struct LayerTrace {
  std::int64_t layer = 0;             // index in the network, from 0
  std::vector<std::uint16_t> choice;  // (N, K) experts
  std::vector<float> gate;            // (N, K) combine weights; empty: not recorded
};

// Where a document comes from.
struct DocumentOrigin {
  std::int32_t source = 0;  // index into RoutingTrace::sources
  std::string tag;          // finer origin, such as a programming language; may be empty
  bool operator==(const DocumentOrigin&) const = default;
};

struct RoutingTrace {
  static constexpr std::int32_t kNoToken = -1;
  // Tables have a cell for every expert of every position and token id.
  static constexpr std::int64_t kMaxExperts = 8192;

  std::int64_t num_experts = 0;      // E
  std::int64_t top_k = 2;            // K
  std::int64_t sequence_length = 0;  // T: positions that every sequence has in the grid of groups
  std::vector<std::string> sources;
  std::vector<DocumentOrigin> documents;
  // Sequence s holds the tokens [sequence_offsets[s], sequence_offsets[s + 1]), at most T, all from
  // the source sequence_sources[s]; a token's position is its place in its sequence.
  std::vector<std::int64_t> sequence_offsets = {0};
  std::vector<std::int32_t> sequence_sources;
  std::vector<std::int32_t> token_ids;  // (N)
  std::vector<std::int32_t> document;   // (N) index into documents
  std::vector<LayerTrace> layers;

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(token_ids.size()); }
  std::int64_t num_sequences() const { return static_cast<std::int64_t>(sequence_sources.size()); }
  std::int64_t longest_sequence() const;  // tokens, at least 1; up to T
  // Of each token: its place in its sequence.
  std::vector<std::int32_t> positions() const;
  // Of each token: the id before it in its sequence; kNoToken for the first.
  std::vector<std::int32_t> previous_tokens() const;
  // Throw UserError, naming `place`, when the parts contradict each other or a value is out of
  // range.
  void check(const std::string& place) const;
  void check_num_experts(const std::string& place) const;
};

}  // namespace openmoe
