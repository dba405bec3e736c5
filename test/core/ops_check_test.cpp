// The public calls of Ops refuse what breaks their contract, and say which op and which tensor.
#include <functional>
#include <stdexcept>
#include <string>

#include "core/base/error.h"
#include "core/cpu/cpu_ops.h"
#include "test/core/ops_test_support.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

using namespace test;

// The message of the logic_error that `call` must throw.
std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

void check_refused(const std::string& op, const std::string& part,
                   const std::function<void()>& call) {
  const std::string message = refusal(call);
  INFO(message);
  CHECK(message.find(op + ": ") != std::string::npos);
  CHECK(message.find(part) != std::string::npos);
}

// A description of a tensor, whose memory is never reached.
Tensor fake(const Shape& shape, DType dtype = DType::f32, Device device = Device::host) {
  static char memory[64];
  return Tensor{memory, dtype, device, shape};
}

Tensor ids(const Shape& shape) {
  return fake(shape, DType::i32);
}

TEST_CASE("ops: wrong shapes, types, devices and missing memory are refused by name") {
  const auto ops = make_cpu_ops();
  const auto refuse = [&](const char* part, Tensor x, Tensor table, Tensor id) {
    check_refused("embedding_forward", part, [&] { ops->embedding_forward(x, table, id); });
  };
  refuse("x is f32 (4), expected f32 (any, any)", fake({4}), fake({9, 3}), ids({4}));
  refuse("table is f32 (9, 2), expected f32 (any, 3)", fake({4, 3}), fake({9, 2}), ids({4}));
  refuse("ids is i32 (5), expected i32 (4)", fake({4, 3}), fake({9, 3}), ids({5}));
  refuse("ids is f32 (4), expected i32 (4)", fake({4, 3}), fake({9, 3}), fake({4}));
  refuse("table is bf16", fake({4, 3}), fake({9, 3}, DType::bf16), ids({4}));
  refuse("table is on the cuda device, expected on the host", fake({4, 3}),
         fake({9, 3}, DType::f32, Device::cuda), ids({4}));
  refuse("x (4, 3) has no memory", Tensor{nullptr, DType::f32, Device::host, {4, 3}}, fake({9, 3}),
         ids({4}));
}

TEST_CASE("ops: an id or target outside the table is refused before memory is touched") {
  const auto ops = make_cpu_ops();
  const Buffer x(*ops, {2, 3}), table(*ops, {4, 3}, 0.0f), weights(*ops, {2}, 1.0f);
  for (const std::int32_t bad : {-1, 4}) {
    const Buffer id(*ops, {2}, Ints{0, bad});
    check_refused("embedding_forward", "ids[1] is", [&] { ops->embedding_forward(x, table, id); });
    check_refused("embedding_backward", "ids[1] is",
                  [&] { ops->embedding_backward(table, x, id); });
  }
  const Buffer target(*ops, {2}, Ints{0, 3});
  check_refused("softmax_cross_entropy", "targets[1] is 3",
                [&] { ops->softmax_cross_entropy(x, target, weights, Tensor{}, 0.0f, 1.0f); });
}

TEST_CASE("ops: memory ops check what they are given") {
  const auto ops = make_cpu_ops();
  check_refused("copy", "src is f32 (3), dst is f32 (4)", [&] { ops->copy(fake({4}), fake({3})); });
  check_refused("copy", "src is i32", [&] { ops->copy(fake({4}), ids({4})); });
  check_refused("copy", "out of reach",
                [&] { ops->copy(fake({4}), fake({4}, DType::f32, Device::cuda)); });
  check_refused("zero", "x is on the cuda device",
                [&] { ops->zero(fake({4}, DType::u8, Device::cuda)); });
  check_refused("add_accumulate", "x is f32 (3)",
                [&] { ops->add_accumulate(fake({4}), fake({3})); });
  check_refused("multiply", "x is i32", [&] { ops->multiply(ids({4}), 2.0f); });
  check_refused("sum_of_squares", "x is bf16",
                [&] { ops->sum_of_squares(fake({4}, DType::bf16)); });
}

TEST_CASE("ops: norm, rope and attention check their shapes") {
  const auto ops = make_cpu_ops();
  const Tensor x = fake({4, 6}), w = fake({6}), segments = ids({4}), rstd = fake({4});
  check_refused("rms_norm_forward", "w is",
                [&] { ops->rms_norm_forward(x, rstd, x, fake({5}), segments, 0.0f); });
  check_refused("rms_norm_forward", "eps must not be negative, found -1",
                [&] { ops->rms_norm_forward(x, rstd, x, w, segments, -1.0f); });
  check_refused("rms_norm_backward_accumulate", "rstd is",
                [&] { ops->rms_norm_backward_accumulate(x, w, x, x, w, segments, fake({3})); });
  check_refused("rope_forward", "must be even, found 3", [&] {
    ops->rope_forward(fake({1, 2, 2, 3}), 100.0f);
  });
  check_refused("rope_backward", "base must be positive", [&] {
    ops->rope_backward(fake({1, 2, 2, 4}), 0.0f);
  });
  const Tensor q = fake({2, 5, 3, 4}), ids_of_rows = ids({2, 5}), log_z = fake({2, 3, 5});
  check_refused("attention_forward", "k is", [&] {
    ops->attention_forward(q, log_z, q, fake({2, 5, 1, 4}), q, ids_of_rows, 1.0f);
  });
  check_refused("attention_forward", "log_z is f32 (2, 5, 3), expected f32 (2, 3, 5)", [&] {
    ops->attention_forward(q, fake({2, 5, 3}), q, q, q, ids_of_rows, 1.0f);
  });
  check_refused("attention_backward", "segment_ids is",
                [&] { ops->attention_backward(q, q, q, q, q, q, q, q, ids({10}), log_z, 1.0f); });
  check_refused("attention_backward", "dv is", [&] {
    ops->attention_backward(q, q, log_z, q, q, q, q, q, ids_of_rows, log_z, 1.0f);
  });
}

TEST_CASE("ops: products check their shapes, and offsets their order") {
  const auto ops = make_cpu_ops();
  check_refused("linear_forward", "x is f32 (4, 6), expected f32 (any, 5)", [&] {
    ops->linear_forward(fake({4, 7}), fake({4, 6}), fake({7, 5}));
  });
  check_refused("linear_forward_accumulate", "y is", [&] {
    ops->linear_forward_accumulate(fake({4, 6}), fake({4, 6}), fake({7, 6}));
  });
  check_refused("linear_backward_input", "dy is", [&] {
    ops->linear_backward_input(fake({4, 6}), fake({4, 6}), fake({7, 6}));
  });
  check_refused("linear_backward_input_accumulate", "dx is", [&] {
    ops->linear_backward_input_accumulate(fake({4, 7}), fake({4, 7}), fake({7, 6}));
  });
  check_refused("linear_backward_weight", "x is", [&] {
    ops->linear_backward_weight(fake({7, 6}), fake({4, 7}), fake({4, 7}));
  });

  const Tensor y = fake({9, 7}), x = fake({9, 6}), w = fake({2, 6, 7});
  const auto refuse = [&](const char* part, std::vector<std::int64_t> offsets) {
    const Tensor view = host_view(offsets.data(), {static_cast<std::int64_t>(offsets.size())});
    check_refused("grouped_matmul_forward", part,
                  [&] { ops->grouped_matmul_forward(y, x, w, view); });
    check_refused("grouped_matmul_backward_input", part,
                  [&] { ops->grouped_matmul_backward_input(x, y, w, view); });
    check_refused("grouped_matmul_backward_input_accumulate", part,
                  [&] { ops->grouped_matmul_backward_input_accumulate(x, y, w, view); });
    check_refused("grouped_matmul_backward_weight", part,
                  [&] { ops->grouped_matmul_backward_weight(w, y, x, view); });
  };
  refuse("expert_offsets is i64 (2), expected i64 (3)", {0, 9});
  refuse("must not fall", {0, 5, 4});
  refuse("must not be negative", {-1, 5, 6});
  refuse("within the rows of x, found 10", {0, 5, 10});
}

TEST_CASE("ops: FFN, router and expert rows check their shapes") {
  const auto ops = make_cpu_ops();
  const Tensor h = fake({4, 3}), wide = fake({4, 6});
  check_refused("ffn_activation_forward", "gate is f32 (4, 3), expected f32 (4, 6)",
                [&] { ops->ffn_activation_forward(h, h, h, FfnKind::gated_swiglu, 4); });
  check_refused("ffn_activation_forward", "num_rows must be within the rows of h, found 5",
                [&] { ops->ffn_activation_forward(h, h, h, FfnKind::swiglu, 5); });
  check_refused("ffn_activation_backward", "dgate is",
                [&] { ops->ffn_activation_backward(h, h, h, wide, h, FfnKind::gated_swiglu, 4); });

  const RouterBuffers out(*ops, 4, 3, 2);
  const Buffer logits(*ops, {4, 3}), routed(*ops, {4}, Ints(4, 1)), pairs(*ops, {4, 2});
  const auto refuse = [&](const char* part, Tensor given, Tensor mask,
                          const RouterOptions& options) {
    check_refused("router_forward", part,
                  [&] { ops->router_forward(out.output(), given, mask, options); });
  };
  refuse("group_tokens must divide the number of tokens, found 3", logits, routed, {3, 4, false});
  refuse("group_tokens must divide", logits, routed, {0, 4, false});
  refuse("capacity must be positive", logits, routed, {2, 0, false});
  refuse("top-2 routing needs at least 2 experts, found 1", fake({4, 1}), routed, {2, 4, false});
  refuse("routed is f32", logits, fake({4}), {2, 4, false});
  refuse("group_picks is f32 (2, 3), expected f32 (1, 3)", logits, routed, {4, 4, false});
  check_refused("router_backward", "dgate is", [&] {
    ops->router_backward(logits, logits, routed, out.output(), {}, {2, 4, false});
  });

  check_refused("gather_rows", "row_token is", [&] { ops->gather_rows(wide, wide, ids({3}), 2); });
  check_refused("gather_rows", "num_rows must be",
                [&] { ops->gather_rows(wide, wide, ids({4}), -1); });
  check_refused("gather_rows_backward_accumulate", "assignment_row is", [&] {
    ops->gather_rows_backward_accumulate(wide, wide, ids({4, 1}));
  });
  check_refused("combine_rows_forward_accumulate", "rows is", [&] {
    ops->combine_rows_forward_accumulate(wide, h, pairs, ids({4, 2}));
  });
  check_refused("combine_rows_backward", "drows is", [&] {
    ops->combine_rows_backward(fake({5, 6}), pairs, wide, wide, pairs, ids({4, 2}));
  });
}

TEST_CASE("ops: loss and optimizer check their arguments") {
  const auto ops = make_cpu_ops();
  check_refused("softmax_cross_entropy", "weights is", [&] {
    ops->softmax_cross_entropy(fake({2, 5}), ids({2}), fake({3}), Tensor{}, 0.0f, 1.0f);
  });
  check_refused("softmax_cross_entropy", "token_loss is", [&] {
    ops->softmax_cross_entropy(fake({2, 5}), ids({2}), fake({2}), fake({3}), 0.0f, 1.0f);
  });
  check_refused("softmax_cross_entropy", "scale must not be negative", [&] {
    ops->softmax_cross_entropy(fake({2, 5}), ids({2}), fake({2}), Tensor{}, 0.0f, -1.0f);
  });
  const Tensor w = fake({1, 3, 2});
  check_refused("adafactor_factored", "row is f32 (1, 2), expected f32 (1, 3)", [&] {
    ops->adafactor_factored(w, fake({1, 2}), fake({1, 2}), w, {});
  });
  AdafactorScalars scalars;
  scalars.decay = 1.0f;
  check_refused("adafactor_full", "decay must be in [0, 1), found 1",
                [&] { ops->adafactor_full(w, w, w, scalars); });
  scalars = {};
  scalars.clip_threshold = 0.0f;
  check_refused("adafactor_full", "clip_threshold must be positive",
                [&] { ops->adafactor_full(w, w, w, scalars); });
  check_refused("adafactor_full", "v is", [&] { ops->adafactor_full(w, fake({3, 2}), w, {}); });
}

TEST_CASE(
    "cpu ops: memory is aligned, writable, and refused with its size when there is not enough") {
  const auto ops = make_cpu_ops();
  for (const std::int64_t bytes : {std::int64_t{0}, std::int64_t{1}, std::int64_t{100},
                                   std::int64_t{2} << 20, (std::int64_t{5} << 20) + 1}) {
    INFO(bytes << " bytes");
    auto* const data = static_cast<unsigned char*>(ops->allocate_bytes(bytes));
    CHECK(reinterpret_cast<std::uintptr_t>(data) % 64 == 0);
    ops->zero(Tensor{data, DType::u8, Device::host, {bytes}});
    if (bytes > 0) {
      data[bytes - 1] = 1;
      CHECK(data[0] == (bytes == 1 ? 1 : 0));
    }
    ops->free_bytes(data, bytes);
  }
  const std::int64_t too_much = std::int64_t{1} << 55;
  try {
    ops->free_bytes(ops->allocate_bytes(too_much), too_much);
    FAIL("2^55 bytes were allocated");
  } catch (const RuntimeFault& fault) {
    CHECK(std::string(fault.what()).find(std::to_string(too_much)) != std::string::npos);
  }
}

}  // namespace
}  // namespace openmoe
