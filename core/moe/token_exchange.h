// TokenExchange: moves rows of activations between the rank that holds the token and the rank that
// holds the expert.
//
// Two verbs and a handle. plan() turns routing decisions into a Routing handle; dispatch brings
// rows in send order to rows in expert order; combine is its inverse. Both are permutations over
// ranks, so each is the other's adjoint: the backward of dispatch is combine with the same handle,
// and the reverse. Both are started and finished, in parts of some local experts each, so that what
// travels hides behind the products of another part.
//
//   send order    S rows: this rank's kept assignments, by (expert, position in the queue of this
//                 rank's groups)
//   expert order  M rows: what this rank's El experts received, by (local expert, source rank, send
//                 order)
#pragma once

#include <cstdint>
#include <vector>

#include "core/arena.h"
#include "core/tensor.h"

namespace openmoe {

// The metadata of one dispatch; one per MoE layer, kept from forward to backward.
struct Routing {
  std::int64_t num_sent = 0;      // S
  std::int64_t num_received = 0;  // M
  Tensor row_token;               // (S_max) i32, device: token index of each sent row
  Tensor assignment_row;          // (N, 2) i32, device: send-order row of each assignment, or -1
  std::vector<std::int64_t> expert_offsets;   // (El + 1): sums of received rows of earlier experts
  std::vector<std::int64_t> sent_per_expert;  // (E)
  std::vector<std::int64_t>
      received_per_source;  // (ep * El): rows from source rank r for local expert e, at r * El + e
};

// Sizes fixed before step 0.
struct ExchangeShape {
  std::int64_t num_tokens = 0;    // N of this rank
  std::int64_t num_experts = 0;   // E
  std::int64_t group_tokens = 0;  // G
  std::int64_t capacity = 0;      // C, the larger of training and evaluation
  std::int64_t d_model = 0;       // D
  // Rows this rank can send: every assignment, but no more than all slots of its groups.
  std::int64_t max_sent() const {
    const std::int64_t slots = num_tokens / group_tokens * num_experts * capacity;
    return slots < 2 * num_tokens ? slots : 2 * num_tokens;
  }
};

class TokenExchange {
 public:
  virtual ~TokenExchange() = default;

  virtual std::int64_t num_local_experts() const = 0;  // El
  virtual std::int64_t max_sent() const = 0;           // S_max
  virtual std::int64_t max_received() const = 0;       // M_max
  // Buffers of one layer's handle (kept for the backward), and of the exchange itself (shared by
  // all layers).
  virtual void allocate_routing(Arena& arena, Routing& routing) = 0;
  virtual void allocate_buffers(Arena& arena) = 0;

  // From choice and slot (N, 2) i32 of the router. Collective over the ep group.
  virtual void plan(Routing& routing, Tensor choice, Tensor slot) = 0;

  // Local experts [part_begin(p), part_begin(p + 1)) make part p.
  virtual std::int64_t num_parts() const { return 1; }
  std::int64_t part_begin(std::int64_t part) const {
    return num_local_experts() * part / num_parts();
  }
  // If not, expert order is send order and the verbs of parts are not called.
  virtual bool moves_rows() const = 0;

  // sent (S_max, D) in send order -> received (M_max, D) in expert order, first M rows; of the rows
  // of one part. Parts are started in their order and finished in their order; neither tensor's
  // rows of the part are touched in between. Collective over the ep group, as combine.
  virtual void start_dispatch(Tensor sent, Tensor received, const Routing& routing,
                              std::int64_t part) = 0;
  virtual void finish_dispatch(Tensor sent, Tensor received, std::int64_t part) = 0;
  // rows (M_max, D) in expert order -> returned (S_max, D) in send order, first S rows. A part is
  // combined after its dispatch is finished; dispatches of later parts may be under way, of the
  // same handle.
  virtual void start_combine(Tensor rows, Tensor returned, const Routing& routing,
                             std::int64_t part) = 0;
  virtual void finish_combine(Tensor returned, std::int64_t part) = 0;
  // Lets the library work for a moment on what was started; not collective.
  virtual void advance() {}
};

}  // namespace openmoe
