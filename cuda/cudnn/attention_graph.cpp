#include "cuda/cudnn/attention_graph.h"

#include <cudnn_frontend.h>

#include <vector>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Tensor_attributes;
using TensorPointer = std::shared_ptr<Tensor_attributes>;

// Tensors common to both graphs.
struct Common {
  TensorPointer q, k, v, lengths, offsets;
};

std::vector<std::int64_t> dims_of(const AttentionProblem& p) {
  return {p.sequences, p.heads, p.length, p.head_dim};
}
// Of (sequence, head, place, element) in (B, T, H, Dh). Where a sequence begins is in its offset.
std::vector<std::int64_t> strides_of(const AttentionProblem& p) {
  return {p.length * p.heads * p.head_dim, p.head_dim, p.heads * p.head_dim, 1};
}

Tensor_attributes rows(const AttentionProblem& p, const char* name, AttentionTensor uid,
                       const TensorPointer& offsets) {
  return Tensor_attributes()
      .set_name(name)
      .set_uid(uid)
      .set_dim(dims_of(p))
      .set_stride(strides_of(p))
      .set_ragged_offset(offsets);
}

void set_rows(const AttentionProblem& p, const TensorPointer& tensor, AttentionTensor uid,
              const TensorPointer& offsets) {
  tensor->set_output(true)
      .set_uid(uid)
      .set_dim(dims_of(p))
      .set_stride(strides_of(p))
      .set_ragged_offset(offsets);
}

Tensor_attributes stats_of(const AttentionProblem& p) {
  return Tensor_attributes()
      .set_name("stats")
      .set_uid(kStats)
      .set_dim({p.sequences, p.heads, p.length, 1})
      .set_stride({p.heads * p.length, p.length, 1, 1})
      .set_data_type(fe::DataType_t::FLOAT);
}

Common add_common(fe::graph::Graph& graph, const AttentionProblem& p) {
  Common common;
  common.lengths = graph.tensor(Tensor_attributes()
                                    .set_name("lengths")
                                    .set_uid(kLengths)
                                    .set_dim({p.sequences, 1, 1, 1})
                                    .set_stride({1, 1, 1, 1})
                                    .set_data_type(fe::DataType_t::INT32));
  common.offsets = graph.tensor(Tensor_attributes()
                                    .set_name("offsets")
                                    .set_uid(kOffsets)
                                    .set_dim({p.sequences + 1, 1, 1, 1})
                                    .set_stride({1, 1, 1, 1})
                                    .set_data_type(fe::DataType_t::INT64));
  common.q = graph.tensor(rows(p, "q", kQ, common.offsets));
  common.k = graph.tensor(rows(p, "k", kK, common.offsets));
  common.v = graph.tensor(rows(p, "v", kV, common.offsets));
  return common;
}

// Both kinds of attributes have these setters.
template <typename Attributes>
void set_causal_within_sequences(Attributes& attributes, const AttentionProblem& p,
                                 const Common& common) {
  attributes.set_attn_scale(p.scale)
      .set_padding_mask(true)
      .set_seq_len_q(common.lengths)
      .set_seq_len_kv(common.lengths)
      .set_max_total_seq_len_q(p.positions)
      .set_max_total_seq_len_kv(p.positions)
      .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
      .set_diagonal_band_right_bound(0);
}

void add_forward(fe::graph::Graph& graph, const AttentionProblem& p) {
  const Common common = add_common(graph, p);
  fe::graph::SDPA_attributes attributes;
  attributes.set_name("attention_forward").set_generate_stats(true);
  set_causal_within_sequences(attributes, p, common);
  const auto [o, stats] = graph.sdpa(common.q, common.k, common.v, attributes);
  set_rows(p, o, kO, common.offsets);
  const Tensor_attributes layout = stats_of(p);
  stats->set_output(true)
      .set_uid(kStats)
      .set_dim(layout.get_dim())
      .set_stride(layout.get_stride())
      .set_data_type(layout.get_data_type());
}

void add_backward(fe::graph::Graph& graph, const AttentionProblem& p) {
  const Common common = add_common(graph, p);
  const TensorPointer o = graph.tensor(rows(p, "o", kO, common.offsets)),
                      d_o = graph.tensor(rows(p, "d_o", kGradO, common.offsets)),
                      stats = graph.tensor(stats_of(p));
  fe::graph::SDPA_backward_attributes attributes;
  attributes.set_name("attention_backward").set_deterministic_algorithm(true);
  set_causal_within_sequences(attributes, p, common);
  const auto [dq, dk, dv] =
      graph.sdpa_backward(common.q, common.k, common.v, o, d_o, stats, attributes);
  set_rows(p, dq, kGradQ, common.offsets);
  set_rows(p, dk, kGradK, common.offsets);
  set_rows(p, dv, kGradV, common.offsets);
}

std::string words_of(const fe::error_t& error) {
  return error.is_good() ? "" : error.err_msg;
}

}  // namespace

CudnnHandle::~CudnnHandle() {
  if (handle_ != nullptr) fe::detail::destroy_handle(handle_);
}

std::string CudnnHandle::open(cudaStream_t stream) {
  if (handle_ != nullptr) return "";
  cudnnStatus_t status = fe::detail::create_handle(&handle_);
  if (status == CUDNN_STATUS_SUCCESS) status = fe::detail::set_stream(handle_, stream);
  if (status == CUDNN_STATUS_SUCCESS) return "";
  return concat("cuDNN cannot be started: ", fe::detail::get_error_string(status));
}

std::int64_t cudnn_version() {
  return static_cast<std::int64_t>(fe::detail::get_backend_version());
}

struct AttentionGraph::State {
  cudnnHandle_t handle = nullptr;
  fe::graph::Graph graph;
};

AttentionGraph::AttentionGraph(const AttentionProblem& problem, const AttentionTarget& target)
    : state_(std::make_unique<State>()) {
  OPENMOE_CHECK(problem.dtype == DType::f32 || problem.dtype == DType::bf16,
                name_of(problem.dtype));
  state_->handle = target.handle;
  fe::graph::Graph& graph = state_->graph;
  graph
      .set_io_data_type(problem.dtype == DType::bf16 ? fe::DataType_t::BFLOAT16
                                                     : fe::DataType_t::FLOAT)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  // Before the nodes, which copy what they need of the graph.
  if (target.sm_version > 0) graph.set_sm_version(target.sm_version);
  if (!target.device_properties.empty()) {
    const auto properties = std::make_shared<fe::DeviceProperties>();
    const auto error =
        properties->deserialize({target.device_properties.begin(), target.device_properties.end()});
    if (error.is_bad()) throw RuntimeFault(concat("cuDNN: device properties: ", error.err_msg));
    graph.set_device_properties(properties);
  }
  if (problem.backward)
    add_backward(graph, problem);
  else
    add_forward(graph, problem);
}

AttentionGraph::~AttentionGraph() = default;

std::string AttentionGraph::lower() {
  if (const auto error = state_->graph.validate(); error.is_bad()) return error.err_msg;
  return words_of(state_->graph.build_operation_graph(state_->handle));
}

std::string AttentionGraph::find() {
  if (const auto error = state_->graph.create_execution_plans({fe::HeurMode_t::A}); error.is_bad())
    return error.err_msg;
  return words_of(state_->graph.check_support());
}

std::string AttentionGraph::compile() {
  return words_of(state_->graph.build_plans());
}

std::string AttentionGraph::execute(std::unordered_map<std::int64_t, void*>& tensors,
                                    void* workspace) const {
  return words_of(state_->graph.execute(state_->handle, tensors, workspace));
}

std::int64_t AttentionGraph::workspace_bytes() const {
  std::int64_t bytes = 0;
  const auto error = state_->graph.get_workspace_size(bytes);
  if (error.is_bad()) throw RuntimeFault(concat("cuDNN: workspace: ", error.err_msg));
  return bytes;
}

std::string AttentionGraph::engine() const {
  std::string name;
  const auto error = state_->graph.get_plan_name(name);
  return error.is_bad() ? error.err_msg : name;
}

}  // namespace openmoe::cuda
