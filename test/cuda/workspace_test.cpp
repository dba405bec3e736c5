#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

TEST_CASE("ops that were given a workspace for their sizes allocate nothing", "[cuda]") {
  const std::int64_t B = 2, T = 40, H = 2, Dh = 32, N = B * T, D = H * Dh, V = 300, rows = 48;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    INFO(name_of(dtype));
    const auto cuda = make_cuda_ops(0);
    OpRun run(*cuda);
    const AttentionCall attention{
        .shape = {B, T, H, Dh}, .dtype = dtype, .scale = 0.2f, .backward = true};
    cuda->choose_attention(AttentionKind::automatic, attention);
    const WorkSizes sizes{.num_tokens = N,
                          .d_model = D,
                          .loss_rows = rows,
                          .attention = attention,
                          .updates = {{3, D, 200, true}, {1, V, D, true}, {1, 1, D, false}}};
    const std::int64_t bytes = cuda->workspace_bytes(sizes);
    void* const block = cuda->allocate_bytes(bytes);
    cuda->use_workspace({block, DType::u8, cuda->device(), {bytes}});

    const std::vector<std::int32_t> ones(static_cast<std::size_t>(N), 1),
        targets(static_cast<std::size_t>(rows), 5);
    const Tensor segments = run.ints("segments", {N}, ones), x = run.normal("x", {N, D}),
                 w = run.normal("w", {D}), dw = run.normal("dw", {D}), y = run.normal("y", {N, D}),
                 rstd = run.normal("rstd", {N}), table = run.normal("table", {V, D}),
                 dx = run.normal("dx", {N, D}), logits = run.normal("logits", {rows, V}),
                 weights = run.normal("weights", {rows}), loss = run.normal("loss", {rows}),
                 goals = run.ints("goals", {rows}, targets), log_z = run.normal("log_z", {B, H, T}),
                 stack = run.normal("stack", {3, D, 200}), row = run.normal("row", {3, D}),
                 col = run.normal("col", {3, 200}), g = run.normal("g", {3, D, 200}),
                 second = run.normal("second", {D});
    const auto heads = [&](const char* name) {
      return run.normal(name, {B, T, H, Dh}, 1.0, false, dtype);
    };
    const Tensor q = heads("q"), k = heads("k"), v = heads("v"), o = heads("o"), dq = heads("dq"),
                 dk = heads("dk"), dv = heads("dv"), d_o = heads("d_o");
    const auto step = [&] {
      cuda->embedding_backward(table, dx, segments);
      cuda->rms_norm_forward(y, rstd, x, w, segments, 1e-6f);
      cuda->rms_norm_backward_accumulate(dx, dw, y, x, w, segments, rstd);
      const Tensor by_row = segments.reshaped({B, T});
      cuda->attention_forward(o, log_z, q, k, v, by_row, 0.2f);
      cuda->attention_backward(dq, dk, dv, d_o, q, k, v, o, by_row, log_z, 0.2f);
      cuda->linear_backward_weight(table, logits, x.rows(0, rows));
      cuda->softmax_cross_entropy(logits, goals, weights, loss, 1e-4f, 1.0f);
      cuda->adafactor_factored(stack, row, col, g, {.learning_rate = 0.01f});
      cuda->adafactor_full(w, second, dw, {.learning_rate = 0.01f});
      cuda->sum_of_squares(stack);
    };
    const std::int64_t before = cuda_emulation::counters().allocations;
    step();
    CHECK(cuda_emulation::counters().allocations == before);
    // Sizes that nobody announced are served all the same, and so is what comes after.
    cuda->embedding_backward(run.normal("wide table", {V, 40 * D}),
                             run.normal("wide dx", {N, 40 * D}), segments);
    cuda->use_workspace({});
    step();
    CHECK(cuda_emulation::counters().allocations > before);
    cuda->free_bytes(block, bytes);
  }
}
