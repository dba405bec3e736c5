// Ops: the contract of every operation a backend must compute, forward and backward.
//
// Conventions
//   - Argument order: outputs, inputs in forward order, saved statistics, scalars. In a backward:
//     gradients of activations, gradients of parameters, the incoming gradient, then what the
//     forward read. dx has the shape of x.
//   - Gradients of parameters ACCUMULATE (+=). Gradients of activations are overwritten, unless the
//     op's name ends in _accumulate.
//   - The public calls check shapes, types and devices once and then call the private do_
//     functions, which trust them.
//   - Storage: operands of products and everything between them (y, q, k, v, o, gate, up, h, rows
//     of experts) have one "compute" type, f32 or bf16; sums are f32 and a bf16 result is rounded
//     once. The residual stream and its gradient, gradients of parameters, statistics, router and
//     losses are always f32. Below, "stored" marks tensors of the compute type; a product's output
//     may be f32 beside bf16 operands.
//   - Results do not depend on the number of threads.
// Dimension letters: see tensor.h. Reference definitions: core/ref.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/config/recipe.h"
#include "core/op_clock.h"
#include "core/op_observer.h"
#include "core/tensor.h"

namespace openmoe {

// Scalars of the routing decision.
struct RouterOptions {
  std::int64_t group_tokens = 0;  // G, divides N
  std::int64_t capacity = 0;      // C
  bool normalize_gates = false;
};

// What the router writes, forward. N tokens, E experts, N/G groups.
struct RouterOutput {
  Tensor prob;    // (N, E) f32: softmax of the logits
  Tensor log_z;   // (N) f32: logsumexp of the logits
  Tensor choice;  // (N, 2) i32: experts by falling probability, ties to the lower index
  Tensor gate;    // (N, 2) f32: combine weights, before any drop
  Tensor slot;    // (N, 2) i32: place in the (group, expert) queue, or -1: dropped or not routed
  Tensor
      group_picks;  // (N/G, E) f32: routed tokens of the group that chose the expert, before drops
  Tensor group_prob;    // (N/G, E) f32: sum of prob over the routed tokens of the group
  Tensor group_routed;  // (N/G) f32: routed tokens of the group
  Tensor group_z;       // (N/G) f32: sum of log_z^2 over the routed tokens of the group
};

// Factors of the auxiliary losses in the router's backward; both already contain the loss weight,
// the mean over MoE layers and the global counts, so that gradients of all ranks simply add up.
struct RouterLossScale {
  float balance = 0.0f;  // d total / d (sum over groups of E * sum_e f_e P_e), f_e = picks/routed,
                         // P_e = group_prob/routed
  float z = 0.0f;        // d total / d (sum over routed tokens of log_z^2)
};

// Sums over the tokens of one loss chunk, as f64 on the host, so that chunking never changes a
// rounding that matters.
struct LossSums {
  double cross_entropy = 0.0;  // sum of w * (log Z - logit[target])
  double log_z_square = 0.0;   // sum of w * (log Z)^2
  double correct = 0.0;        // sum of w * [argmax == target], ties to the lower id
};

// Where the ranks of a tensor group share a vocabulary: the rows of a table, or the columns of
// logits, that are here. The default is a whole vocabulary.
struct VocabularyRange {
  std::int64_t first = 0;  // id of the first row or column here
  std::int64_t total = 0;  // ids of the whole vocabulary; 0: as many as are here

  bool is_whole() const { return total == 0; }
};

// What one row of logits adds up to over the columns of some ranks.
struct LogitSums {
  double largest = 0.0;
  double sum = 0.0;         // of exp(logit - largest)
  double target = 0.0;      // the target's logit; 0 where its column is not here
  std::int64_t argmax = 0;  // id of the largest logit, the lower one of equals
};

// The sums of the columns of both; those of `b` have the higher ids.
LogitSums joined(const LogitSums& a, const LogitSums& b);

// A vocabulary shared by ranks: their sums of the same rows become those of all columns.
struct SharedVocabulary {
  VocabularyRange range;
  std::function<void(std::span<LogitSums>)> combine;  // in place, over the ranks
};

// A matrix shared by ranks along one of its axes.
struct SharedMatrix {
  enum class Axis { rows, columns };
  Axis axis = Axis::rows;
  std::int64_t num_elements = 0;               // of the whole matrix
  std::function<void(std::span<double>)> sum;  // in place, over the ranks
};

// The calls of attention that a network will make.
struct AttentionCall {
  Shape shape;  // of q: (B, T, H, Dh)
  DType dtype = DType::f32;
  float scale = 1.0f;
  bool backward = false;  // beside the forward
};

// The calls that a network will make on this rank, as far as memory depends on them.
struct WorkSizes {
  struct Update {  // of Adafactor, or of a parameter's norm
    std::int64_t stack = 0, rows = 0, columns = 0;
    bool factored = false;
  };
  std::int64_t num_tokens = 0;
  std::int64_t d_model = 0;
  std::int64_t loss_rows = 0;  // of a chunk of logits
  AttentionCall attention;
  std::vector<Update> updates;
};

// Scalars of one Adafactor update (Shazeer and Stern 2018, as in t5x; see core/train/adafactor.h).
struct AdafactorScalars {
  float learning_rate = 0.0f;
  float decay = 0.0f;  // second-moment decay of this step
  float clip_threshold = 1.0f;
  float epsilon_square = 1e-30f;
  float epsilon_scale = 1e-3f;
};

// Neighbouring rows of one tensor that go to neighbouring rows of another.
struct RowStretch {
  std::int64_t to = 0;
  std::int64_t from = 0;
  std::int64_t num_rows = 0;
};

class Ops {
 public:
  virtual ~Ops() = default;

  // Every op tells `profile` of itself from now on; null stops. It must outlive its use.
  void set_profile(OpObserver* profile) { profile_ = profile; }
  // The part of the network that the next ops belong to, for the profile; a literal. Returns the
  // part before.
  const char* enter(const char* part);
  void enter_layer(std::int64_t layer, Pass pass);  // the same of the layer; -1: none
  // The clock by which the ops run; it must not outlive this. Base: of a backend whose ops have
  // ended when their call returns.
  virtual std::unique_ptr<OpClock> make_clock();

  // ---- choices before the first step ----
  // Takes the kernels of attention for calls like `call` and says which, for the start-up log:
  // "builtin". Without it an op chooses for itself, as with automatic. Throws UserError where
  // `wanted` cannot be had.
  virtual std::string choose_attention(AttentionKind wanted, const AttentionCall& call);

  // ---- memory of the device ----
  virtual const char* name() const = 0;
  virtual Device device() const = 0;
  virtual void* allocate_bytes(std::int64_t bytes) = 0;  // 64-byte aligned; throws RuntimeFault
  virtual void free_bytes(void* data, std::int64_t bytes) = 0;
  void zero(Tensor x);
  void copy(Tensor dst, Tensor src);  // same dtype and size; either may be on the host
  // Memory that ops need while they run, beside their tensors; the host's find it by themselves.
  virtual std::int64_t workspace_bytes(const WorkSizes&) { return 0; }
  // Ops work in it until another is given; {}: in what they allocate.
  virtual void use_workspace(Tensor) {}
  // Host memory that copies reach fastest; throws RuntimeFault. On the host, memory as any other.
  virtual void* allocate_host_bytes(std::int64_t bytes) { return allocate_bytes(bytes); }
  virtual void free_host_bytes(void* data, std::int64_t bytes) { free_bytes(data, bytes); }
  // dst, in such memory, = src as it is now, in the background; adafactor, which changes
  // parameters, waits for it by itself. Nothing else may write src before it is done.
  void download(Tensor dst, Tensor src);
  virtual bool downloads_are_done() { return true; }  // all so far
  virtual void finish_downloads() {}
  // dst = src between f32 and bf16, of one shape; to bf16 by rounding to nearest, ties to even.
  void convert(Tensor dst, Tensor src);
  void add_accumulate(Tensor y, Tensor x);  // y += x, f32
  void multiply(Tensor x, float factor);    // x *= factor, f32
  double sum_of_squares(Tensor x);          // f64 sum on the host, f32 input
  // The same of each of `xs`, with one wait for a device (or few).
  void sums_of_squares(std::span<double> sums, std::span<const Tensor> xs);

  // ---- layout of what travels between ranks ----
  // dst[to + i] = src[from + i] for the rows of every stretch; none is written twice. dst and src
  // (any, W), of one type and without common memory.
  void copy_rows(Tensor dst, Tensor src, std::span<const RowStretch> stretches);
  // dst[b, a] = src[a, b]. dst (B, A, W), src (A, B, W), of one type and without common memory.
  void swap_leading_axes(Tensor dst, Tensor src);
  // y = pieces[0] + pieces[1] + ..., added in this order. y (n), pieces (P, n), f32.
  void sum_pieces(Tensor y, Tensor pieces);

  // ---- embedding ----
  // x[n] = table[ids[n]]. x (N, D), table (V, D), ids (N) i32 in [0, V). Of a table of part of the
  // vocabulary: zero where the id is elsewhere.
  void embedding_forward(Tensor x, Tensor table, Tensor ids, const VocabularyRange& range = {});
  // dtable[ids[n]] += dx[n], for the ids that are here
  void embedding_backward(Tensor dtable, Tensor dx, Tensor ids, const VocabularyRange& range = {});

  // ---- RMSNorm (Zhang and Sennrich 2019) ----
  // y = x * rstd * w * real, rstd = 1 / sqrt(mean(x^2) + eps), real[n] = segment_ids[n] > 0: padded
  // rows give 0. y (N, D) stored, x (N, D), rstd (N) saved for backward, w (D), segment_ids (N)
  // i32.
  void rms_norm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, Tensor segment_ids, float eps);
  // dx += ..., dw += ...: dx is the gradient of the residual stream; dy is f32.
  void rms_norm_backward_accumulate(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w,
                                    Tensor segment_ids, Tensor rstd);

  // ---- linear: weights are (out, in), as the Hugging Face layout stores them ----
  // Both operands of a product are f32, or both bf16; y and dx are f32 or as the operands, dw is
  // f32.
  void linear_forward(Tensor y, Tensor x,
                      Tensor w);  // y = x w^T. y (N, out), x (N, in), w (out, in)
  void linear_forward_accumulate(Tensor y, Tensor x, Tensor w);  // y += x w^T
  void linear_backward_input(Tensor dx, Tensor dy, Tensor w);    // dx = dy w
  void linear_backward_input_accumulate(Tensor dx, Tensor dy, Tensor w);
  void linear_backward_weight(Tensor dw, Tensor dy, Tensor x);  // dw += dy^T x

  // ---- grouped products: group g has rows [offsets[g], offsets[g+1]) of x and y; weights are (El,
  // in, out) ---- expert_offsets (El+1) i64 on the host; rows at and beyond the last offset are not
  // touched.
  void grouped_matmul_forward(Tensor y, Tensor x, Tensor w, Tensor expert_offsets);  // y = x w[g]
  void grouped_matmul_backward_input(Tensor dx, Tensor dy, Tensor w,
                                     Tensor expert_offsets);  // dx = dy w[g]^T
  void grouped_matmul_backward_input_accumulate(Tensor dx, Tensor dy, Tensor w,
                                                Tensor expert_offsets);
  void grouped_matmul_backward_weight(Tensor dw, Tensor dy, Tensor x,
                                      Tensor expert_offsets);  // dw[g] += x^T dy

  // ---- rotary position embedding (Su et al. 2021), pairs (j, j + Dh/2), angle = t * base^(-2j/Dh)
  // ---- In place on x (B, T, H, Dh), stored; the position is the index t in the row.
  void rope_forward(Tensor x, float base);
  void rope_backward(Tensor dx, float base);  // the inverse rotation, in place
  // The same of queries and keys of one shape at once.
  void rope_forward(Tensor q, Tensor k, float base);
  void rope_backward(Tensor dq, Tensor dk, float base);

  // ---- causal attention within a segment ----
  // o = softmax(scale * q k^T) v over positions s <= t with segment_ids[s] == segment_ids[t] > 0;
  // padded rows give 0. o, q, k, v (B, T, H, Dh) stored; log_z (B, H, T) f32 saved for backward;
  // segment_ids (B, T). Never a T x T matrix in memory.
  void attention_forward(Tensor o, Tensor log_z, Tensor q, Tensor k, Tensor v, Tensor segment_ids,
                         float scale);
  void attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor d_o, Tensor q, Tensor k, Tensor v,
                          Tensor o, Tensor segment_ids, Tensor log_z, float scale);

  // ---- FFN activation (Shazeer 2020) ----
  // swiglu: h = swish(gate) * up. gated_swiglu: gate = [a | b] by columns, h = a * swish(b) * up.
  // h, up (N, F), gate (N, Fg), all stored. Only the first num_rows rows are computed.
  void ffn_activation_forward(Tensor h, Tensor gate, Tensor up, FfnKind kind,
                              std::int64_t num_rows);
  // dgate and dup may alias gate and up.
  void ffn_activation_backward(Tensor dgate, Tensor dup, Tensor dh, Tensor gate, Tensor up,
                               FfnKind kind, std::int64_t num_rows);

  // ---- router: softmax, top-2, queue slots (ST-MoE, Zoph et al. 2022) ----
  // First choices of all tokens of a group queue before second choices. logits (N, E) f32. routed
  // (N) i32: tokens with 0 get slot -1 and count nowhere. A dropped assignment still advances the
  // queue.
  void router_forward(const RouterOutput& out, Tensor logits, Tensor routed,
                      const RouterOptions& options);
  // dlogits (N, E) from dgate (N, 2) and the two auxiliary losses. choice is a constant of the
  // differentiation.
  void router_backward(Tensor dlogits, Tensor dgate, Tensor routed, const RouterOutput& saved,
                       const RouterLossScale& scale, const RouterOptions& options);

  // ---- tokens to expert rows and back; rows and drows are stored, x and y of the sums f32 ----
  // rows[s] = x[row_token[s]], s < num_rows. rows (S_max, D) and x stored, row_token (S_max) i32.
  void gather_rows(Tensor rows, Tensor x, Tensor row_token, std::int64_t num_rows);
  // dx[n] += sum over k with assignment_row[n, k] >= 0 of drows[assignment_row[n, k]].
  // assignment_row (N, 2) i32.
  void gather_rows_backward_accumulate(Tensor dx, Tensor drows, Tensor assignment_row);
  // y[n] += sum over k with assignment_row[n, k] >= 0 of gate[n, k] * rows[assignment_row[n, k]].
  void combine_rows_forward_accumulate(Tensor y, Tensor rows, Tensor gate, Tensor assignment_row);
  // drows[assignment_row[n, k]] = gate[n, k] * dy[n]; dgate[n, k] = <dy[n], rows[...]> or 0 where
  // there is no row.
  void combine_rows_backward(Tensor drows, Tensor dgate, Tensor dy, Tensor rows, Tensor gate,
                             Tensor assignment_row);

  // ---- cross-entropy with z-loss over a chunk of tokens ----
  // logits (n, V) f32 become d total / d logits in place when scale > 0; untouched when scale == 0
  // (evaluation). The loss of a token is w * (log Z - logit[target] + z_weight * (log Z)^2); scale
  // multiplies the gradient (1 / global sum of w). targets (n) i32, weights (n) f32. token_loss (n)
  // f32: w * (log Z - logit[target]), or an empty tensor. Where ranks share the vocabulary
  // (`shared` is not null), logits are the columns of this rank, and the result is that of all
  // columns, the same on each of them.
  LossSums softmax_cross_entropy(Tensor logits, Tensor targets, Tensor weights, Tensor token_loss,
                                 float z_weight, float scale,
                                 const SharedVocabulary* shared = nullptr);

  // ---- Adafactor ----
  // Factored update of `stack` independent matrices: w, g (stack, R, C); row (stack, R) f32 and col
  // (stack, C) f32 hold the running means of g^2 over columns and rows. RMS of w and of the update,
  // and clipping, are per matrix. Where ranks share each matrix (`shared` is not null), w, g and
  // the statistic of the shared axis are this rank's part; the other statistic is whole on every
  // rank. rounded (stack, R, C) bf16, or an empty tensor: becomes the new w, rounded.
  void adafactor_factored(Tensor w, Tensor row, Tensor col, Tensor g,
                          const AdafactorScalars& scalars, const SharedMatrix* shared = nullptr,
                          Tensor rounded = {});
  // Unfactored: v, w, g of one shape.
  void adafactor_full(Tensor w, Tensor v, Tensor g, const AdafactorScalars& scalars,
                      const SharedMatrix* shared = nullptr);

 private:
  virtual void do_zero(Tensor x) = 0;
  virtual void do_copy(Tensor dst, Tensor src) = 0;
  virtual void do_download(Tensor dst, Tensor src) { do_copy(dst, src); }
  virtual void do_convert(Tensor dst, Tensor src) = 0;
  virtual void do_add_accumulate(Tensor y, Tensor x) = 0;
  virtual void do_multiply(Tensor x, float factor) = 0;
  virtual void do_sums_of_squares(std::span<double> sums, std::span<const Tensor> xs) = 0;
  virtual void do_copy_rows(Tensor dst, Tensor src, std::span<const RowStretch> stretches) = 0;
  virtual void do_swap_leading_axes(Tensor dst, Tensor src) = 0;
  virtual void do_sum_pieces(Tensor y, Tensor pieces) = 0;
  virtual void do_embedding_forward(Tensor x, Tensor table, Tensor ids,
                                    const VocabularyRange& range) = 0;
  virtual void do_embedding_backward(Tensor dtable, Tensor dx, Tensor ids,
                                     const VocabularyRange& range) = 0;
  virtual void do_rms_norm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, Tensor segment_ids,
                                   float eps) = 0;
  virtual void do_rms_norm_backward_accumulate(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w,
                                               Tensor segment_ids, Tensor rstd) = 0;
  virtual void do_linear_forward(Tensor y, Tensor x, Tensor w, bool accumulate) = 0;
  virtual void do_linear_backward_input(Tensor dx, Tensor dy, Tensor w, bool accumulate) = 0;
  virtual void do_linear_backward_weight(Tensor dw, Tensor dy, Tensor x) = 0;
  virtual void do_grouped_matmul_forward(Tensor y, Tensor x, Tensor w, Tensor expert_offsets) = 0;
  virtual void do_grouped_matmul_backward_input(Tensor dx, Tensor dy, Tensor w,
                                                Tensor expert_offsets, bool accumulate) = 0;
  virtual void do_grouped_matmul_backward_weight(Tensor dw, Tensor dy, Tensor x,
                                                 Tensor expert_offsets) = 0;
  virtual void do_rope(Tensor x, float base, bool inverse) = 0;
  virtual void do_rope_pair(Tensor q, Tensor k, float base, bool inverse) {
    do_rope(q, base, inverse);
    do_rope(k, base, inverse);
  }
  virtual void do_attention_forward(Tensor o, Tensor log_z, Tensor q, Tensor k, Tensor v,
                                    Tensor segment_ids, float scale) = 0;
  virtual void do_attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor d_o, Tensor q,
                                     Tensor k, Tensor v, Tensor o, Tensor segment_ids, Tensor log_z,
                                     float scale) = 0;
  virtual void do_ffn_activation_forward(Tensor h, Tensor gate, Tensor up, FfnKind kind,
                                         std::int64_t num_rows) = 0;
  virtual void do_ffn_activation_backward(Tensor dgate, Tensor dup, Tensor dh, Tensor gate,
                                          Tensor up, FfnKind kind, std::int64_t num_rows) = 0;
  virtual void do_router_forward(const RouterOutput& out, Tensor logits, Tensor routed,
                                 const RouterOptions& options) = 0;
  virtual void do_router_backward(Tensor dlogits, Tensor dgate, Tensor routed,
                                  const RouterOutput& saved, const RouterLossScale& scale,
                                  const RouterOptions& options) = 0;
  virtual void do_gather_rows(Tensor rows, Tensor x, Tensor row_token, std::int64_t num_rows) = 0;
  virtual void do_gather_rows_backward_accumulate(Tensor dx, Tensor drows,
                                                  Tensor assignment_row) = 0;
  virtual void do_combine_rows_forward_accumulate(Tensor y, Tensor rows, Tensor gate,
                                                  Tensor assignment_row) = 0;
  virtual void do_combine_rows_backward(Tensor drows, Tensor dgate, Tensor dy, Tensor rows,
                                        Tensor gate, Tensor assignment_row) = 0;
  virtual LossSums do_softmax_cross_entropy(Tensor logits, Tensor targets, Tensor weights,
                                            Tensor token_loss, float z_weight, float scale,
                                            const SharedVocabulary* shared) = 0;
  virtual void do_adafactor_factored(Tensor w, Tensor row, Tensor col, Tensor g,
                                     const AdafactorScalars& scalars, const SharedMatrix* shared,
                                     Tensor rounded) = 0;
  virtual void do_adafactor_full(Tensor w, Tensor v, Tensor g, const AdafactorScalars& scalars,
                                 const SharedMatrix* shared) = 0;

  OpObserver* profile_ = nullptr;
  const char* part_ = "other";
};

}  // namespace openmoe
