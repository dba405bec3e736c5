#include <algorithm>
#include <mutex>
#include <string>

#include "cuda/cudnn/library.h"
#include "cudnn_frontend.h"
#include "test/cuda_emulation/runtime/cudnn_attention.h"
#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/streams.h"
#include "test/cuda_emulation/runtime/violation.h"

struct cudnnContext {
  int device = 0;
  cudaStream_t stream = nullptr;
};

namespace cuda_emulation {
namespace {

using namespace cudnn_frontend;
using namespace cudnn_frontend::graph;

Cudnn& settings() {
  static Cudnn* instance = new Cudnn;
  return *instance;
}
std::int64_t& plan_count() {
  static std::int64_t count = 0;
  return count;
}

error_object refuse(error_code_t code, const std::string& words) {
  return {code, words};
}
error_object not_supported(const std::string& words) {
  return refuse(error_code_t::GRAPH_NOT_SUPPORTED, words);
}

std::vector<TensorPointer> rows_of(const AttentionNode& node) {
  if (!node.backward) return {node.q, node.k, node.v, node.o};
  return {node.q, node.k, node.v, node.o, node.d_o, node.dq, node.dk, node.dv};
}

// q, k, v, o and gradients: packed (B, T, H, Dh), one shape, one offset.
error_object check_rows(const AttentionNode& node) {
  const std::vector<std::int64_t> dim = node.q->get_dim();
  for (const TensorPointer& x : rows_of(node)) {
    const std::string& name = x->get_name();
    if (x->get_dim().size() != 4 || x->get_stride().size() != 4)
      return refuse(error_code_t::ATTRIBUTE_NOT_SET,
                    "The dim or stride for " + name + " is invalid");
    if (x->get_dim() != dim)
      return not_supported(text(name, ": other dimensions than q: not emulated"));
    const std::vector<std::int64_t> stride = x->get_stride();
    if (stride[3] != 1)
      return not_supported(
          "The stride for the last dimension corresponding to the embedding size per head should "
          "be 1 for " +
          name);
    if (stride[1] != dim[3] || stride[2] != dim[1] * dim[3])
      return not_supported(text(name, ": strides of head ", stride[1], " and place ", stride[2],
                                " are not those of (B, T, H, Dh): not emulated"));
    if (x->get_ragged_offset() == nullptr || x->get_ragged_offset() != node.q->get_ragged_offset())
      return not_supported(text(name, ": no ragged offset, or not that of q: not emulated"));
  }
  return {};
}

error_object check_options(const AttentionNode& node) {
  const AttentionOptions& options = node.options;
  if (!options.padding_mask)
    return not_supported("Ragged offsets are only supported with padding mask.");
  if (options.seq_len_q == nullptr || options.seq_len_kv == nullptr)
    return refuse(error_code_t::ATTRIBUTE_NOT_SET,
                  "Padding mask requires seq_len_q/seq_len_kv to be set.");
  if (options.seq_len_q != options.seq_len_kv)
    return not_supported("other lengths of keys than of queries: not emulated");
  if (options.right_bound != 0 || options.alignment != DiagonalAlignment_t::TOP_LEFT)
    return not_supported("attention that is not causal from the top left: not emulated");
  if (!options.scale) return not_supported("no attn_scale: not emulated");
  return {};
}

error_object check_index(const TensorPointer& x, std::int64_t count, bool wide_allowed) {
  const DataType_t type = x->get_data_type();
  const bool typed = type == DataType_t::INT32 || (wide_allowed && type == DataType_t::INT64);
  if (typed && x->get_dim() == std::vector<std::int64_t>{count, 1, 1, 1} &&
      x->get_stride() == std::vector<std::int64_t>{1, 1, 1, 1})
    return {};
  return refuse(error_code_t::CUDNN_BACKEND_API_FAILED,
                text(x->get_name(), ": not (", count, ", 1, 1, 1) integers"));
}

error_object check_stats(const AttentionNode& node) {
  if (!node.backward && !node.options.generate_stats)
    return not_supported("attention without statistics: not emulated");
  const std::vector<std::int64_t> dim = node.q->get_dim();
  if (node.stats->get_data_type() != DataType_t::FLOAT)
    return not_supported("The Stats output of sdpa must be an FP32 tensor.");
  const std::vector<std::int64_t> packed{dim[1] * dim[2], dim[2], 1, 1};
  if (node.stats->get_dim() != std::vector<std::int64_t>{dim[0], dim[1], dim[2], 1} ||
      node.stats->get_stride() != packed)
    return not_supported("a non-ragged Stats tensor must be a packed BHSD tensor.");
  return {};
}

// cuDNN 9.19's limits of packed sequences.
error_object check_architecture(const AttentionNode& node, int sm_version) {
  const int major = sm_version / 10;
  const std::int64_t width = node.q->get_dim()[3];
  if (major < 8)
    return not_supported("cudnn SDPA operation requires Ampere and above for FP16/BF16 precision");
  if (node.backward && major == 8 && node.options.deterministic)
    return not_supported(
        "Deterministic algorithm is not supported for bprop thd on SM8X and SM12X GPUs");
  if (width % 8 != 0 || width > (node.backward && major == 8 ? 128 : 256))
    return not_supported(
        "Num hidden_dim should be less than or equal to 256 and hidden_dim should be multiple of "
        "8");
  return {};
}

template <typename... Checks>
error_object first_bad(Checks... checks) {
  error_object error;
  static_cast<void>(((error = checks(), error.is_good()) && ...));
  return error;
}

}  // namespace

Cudnn cudnn() {
  return settings();
}
void set_cudnn(const Cudnn& cudnn) {
  settings() = cudnn;
}
std::int64_t num_attention_plans() {
  return plan_count();
}

}  // namespace cuda_emulation

namespace cudnn_frontend {

using namespace cuda_emulation;

namespace detail {

cudnnStatus_t create_handle(cudnnHandle_t* handle) {
  *handle = new cudnnContext{current_device(), nullptr};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t destroy_handle(cudnnHandle_t handle) {
  const std::lock_guard lock(api_mutex());
  stream_of(handle->stream, "cudnnDestroy");  // which may wait for it
  delete handle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t set_stream(cudnnHandle_t handle, cudaStream_t stream) {
  const std::lock_guard lock(api_mutex());
  if (handle == nullptr) return CUDNN_STATUS_BAD_PARAM;
  if (stream_of(stream, "cudnnSetStream").device != handle->device) return CUDNN_STATUS_BAD_PARAM;
  handle->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}
const char* get_error_string(cudnnStatus_t status) {
  return status == CUDNN_STATUS_SUCCESS     ? "CUDNN_STATUS_SUCCESS"
         : status == CUDNN_STATUS_BAD_PARAM ? "CUDNN_STATUS_BAD_PARAM"
                                            : "CUDNN_STATUS_NOT_SUPPORTED";
}
std::size_t get_backend_version() {
  return static_cast<std::size_t>(cudnn().version);
}

}  // namespace detail

error_object DeviceProperties::deserialize(const std::vector<std::uint8_t>&) {
  return not_supported("graphs for devices that are not here: not emulated");
}

namespace graph {

Graph& Graph::set_io_data_type(DataType_t type) {
  io_type_ = type;
  return *this;
}
Graph& Graph::set_intermediate_data_type(DataType_t type) {
  intermediate_type_ = type;
  return *this;
}
Graph& Graph::set_compute_data_type(DataType_t type) {
  compute_type_ = type;
  return *this;
}
Graph& Graph::set_sm_version(std::int32_t version) {
  sm_version_ = version;
  return *this;
}
Graph& Graph::set_device_properties(std::shared_ptr<const DeviceProperties>) {
  return *this;
}

TensorPointer Graph::tensor(const Tensor_attributes& tensor) {
  tensors_.push_back(std::make_shared<Tensor_attributes>(tensor));
  tensors_.back()->set_output(true);  // in memory, as outputs are
  return tensors_.back();
}
TensorPointer Graph::output(const char* name) {
  tensors_.push_back(std::make_shared<Tensor_attributes>());
  tensors_.back()->set_name(name);
  return tensors_.back();
}

std::array<TensorPointer, 2> Graph::sdpa(TensorPointer q, TensorPointer k, TensorPointer v,
                                         SDPA_attributes attributes) {
  if (node_) violation("cudnn_frontend: a graph of two nodes of attention: not emulated");
  node_.emplace();
  node_->options = attributes.options;
  node_->q = q;
  node_->k = k;
  node_->v = v;
  node_->o = output("O");
  node_->stats = output("Stats");
  return {node_->o, node_->stats};
}

std::array<TensorPointer, 3> Graph::sdpa_backward(TensorPointer q, TensorPointer k, TensorPointer v,
                                                  TensorPointer o, TensorPointer dO,
                                                  TensorPointer stats,
                                                  SDPA_backward_attributes attributes) {
  if (node_) violation("cudnn_frontend: a graph of two nodes of attention: not emulated");
  node_.emplace();
  node_->backward = true;
  node_->options = attributes.options;
  node_->q = q;
  node_->k = k;
  node_->v = v;
  node_->o = o;
  node_->d_o = dO;
  node_->stats = stats;
  node_->dq = output("dQ");
  node_->dk = output("dK");
  node_->dv = output("dV");
  return {node_->dq, node_->dk, node_->dv};
}

error_object Graph::expect(Stage stage, const char* call) const {
  if (stage_ >= stage) return {};
  return refuse(error_code_t::GRAPH_EXECUTION_PLAN_CREATION_FAILED,
                text(call, ": called before what it builds on"));
}

error_object Graph::validate() {
  if (!node_) return refuse(error_code_t::ATTRIBUTE_NOT_SET, "a graph without nodes");
  if (intermediate_type_ != DataType_t::FLOAT || compute_type_ != DataType_t::FLOAT)
    return refuse(error_code_t::ATTRIBUTE_NOT_SET,
                  "Intermediate tensor data type needs to be set as internal tensors require it.");
  for (const TensorPointer& x : tensors_) {
    if (x->get_is_virtual())
      return not_supported(x->get_name() + ": a virtual result: not emulated");
    if (x->get_data_type() == DataType_t::NOT_SET) x->set_data_type(io_type_);
    if (x->get_data_type() == DataType_t::NOT_SET)
      return refuse(error_code_t::ATTRIBUTE_NOT_SET, x->get_name() + ": no data type");
    const auto same_uid = [&](const TensorPointer& y) { return x->get_uid() == y->get_uid(); };
    if (x->get_uid() == 0 || std::count_if(tensors_.begin(), tensors_.end(), same_uid) != 1)
      return refuse(error_code_t::INVALID_VALUE, x->get_name() + ": no uid of its own");
  }
  const int arch = sm_version_ > 0 ? sm_version_ : hardware().arch;
  error_object error = first_bad(
      [&] { return check_rows(*node_); }, [&] { return check_options(*node_); },
      [&] { return check_stats(*node_); }, [&] { return check_architecture(*node_, arch); });
  if (error.is_good()) stage_ = Stage::validated;
  return error;
}

error_object Graph::build_operation_graph(cudnnHandle_t handle) {
  if (error_object error = expect(Stage::validated, "build_operation_graph"); error.is_bad())
    return error;
  if (handle == nullptr)
    return refuse(error_code_t::CUDNN_BACKEND_API_FAILED, "no handle and no device properties");
  const std::int64_t sequences = node_->q->get_dim()[0];
  error_object error =
      first_bad([&] { return check_index(node_->options.seq_len_q, sequences, false); },
                [&] { return check_index(node_->q->get_ragged_offset(), sequences + 1, true); });
  if (error.is_bad()) return error;
  device_ = handle->device;
  stage_ = Stage::lowered;
  return {};
}

error_object Graph::create_execution_plans(const std::vector<HeurMode_t>& modes) {
  if (error_object error = expect(Stage::lowered, "create_execution_plans"); error.is_bad())
    return error;
  const std::string& words = settings().refusal;
  if (modes.empty() || !words.empty())
    return refuse(error_code_t::HEURISTIC_QUERY_FAILED, words.empty() ? "no mode" : words);
  stage_ = Stage::found;
  return {};
}

error_object Graph::check_support() {
  if (error_object error = expect(Stage::found, "check_support"); error.is_bad()) return error;
  for (const TensorPointer& x : rows_of(*node_))
    if (x->get_data_type() != DataType_t::BFLOAT16)
      return not_supported("No valid engine configs for " + x->get_name() + ", which is not bf16");
  stage_ = Stage::supported;
  return {};
}

error_object Graph::build_plans(BuildPlanPolicy_t, bool) {
  if (error_object error = expect(Stage::supported, "build_plans"); error.is_bad()) return error;
  ++plan_count();
  stage_ = Stage::built;
  return {};
}

error_object Graph::get_workspace_size(std::int64_t& bytes) const {
  if (error_object error = expect(Stage::built, "get_workspace_size"); error.is_bad()) return error;
  bytes = attention_workspace_bytes(*node_);
  return {};
}

error_object Graph::get_plan_name(std::string& name) const {
  name = "emulated";
  return expect(Stage::built, "get_plan_name");
}

error_object Graph::execute(cudnnHandle_t handle, std::unordered_map<std::int64_t, void*>& pointers,
                            void* workspace) const {
  const std::lock_guard lock(api_mutex());
  if (error_object error = expect(Stage::built, "execute"); error.is_bad()) return error;
  if (handle == nullptr) return refuse(error_code_t::GRAPH_EXECUTION_FAILED, "no handle");
  if (handle->device != device_ || handle->device != current_device())
    violation(text("cudnn_frontend: a plan of device ", device_, " with a handle of device ",
                   handle->device, " while device ", current_device(), " is current"));
  for (const TensorPointer& x : tensors_) {
    const auto found = pointers.find(x->get_uid());
    if (found == pointers.end() || found->second == nullptr)
      return refuse(error_code_t::INVALID_VARIANT_PACK,
                    text("Uid ", x->get_uid(), " does not exist in variant pack."));
    if (reinterpret_cast<std::uintptr_t>(found->second) % 16 != 0)
      return refuse(error_code_t::INVALID_VARIANT_PACK,
                    x->get_name() + ": the pointer is not aligned to 16 bytes");
    if (!device_memory::contains(found->second))
      violation("cuDNN attention, tensor " + x->get_name() + ": a host pointer");
  }
  CUstream_st& stream = stream_of(handle->stream, "cudnnBackendExecute");
  Operation operation(stream, node_->backward ? "cuDNN attention backward" : "cuDNN attention");
  run_attention(*node_, pointers, workspace, stream.device);
  return {};
}

}  // namespace graph
}  // namespace cudnn_frontend

// The library that a device build opens by name (cuda/cudnn/library.h).
namespace openmoe::cuda {

const std::string& open_cudnn() {
  static const std::string none,
      missing = "libcudnn.so.9 cannot be loaded (emulated: there is none): install cuDNN";
  return cuda_emulation::cudnn().present ? none : missing;
}

}  // namespace openmoe::cuda
