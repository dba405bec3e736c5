// NVIDIA's C++ graph API of cuDNN (cudnn-frontend 1.x) as far as this project calls it: names and
// signatures are theirs. Attention is all that a graph can compute here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cudnn.h"

namespace cudnn_frontend {

enum class error_code_t {
  OK,
  ATTRIBUTE_NOT_SET,
  INVALID_VARIANT_PACK,
  GRAPH_NOT_SUPPORTED,
  GRAPH_EXECUTION_PLAN_CREATION_FAILED,
  GRAPH_EXECUTION_FAILED,
  HEURISTIC_QUERY_FAILED,
  CUDNN_BACKEND_API_FAILED,
  INVALID_VALUE,
};

struct [[nodiscard]] error_object {
  error_code_t code = error_code_t::OK;
  std::string err_msg;

  error_code_t get_code() { return code; }
  std::string get_message() { return err_msg; }
  bool is_good() const { return code == error_code_t::OK; }
  bool is_bad() const { return !is_good(); }
};
using error_t = error_object;

enum class DataType_t { NOT_SET, FLOAT, DOUBLE, HALF, INT32, INT64, BFLOAT16 };
enum class HeurMode_t { A, B, FALLBACK, OPENSOURCE };
enum class DiagonalAlignment_t { TOP_LEFT, BOTTOM_RIGHT };
enum class BuildPlanPolicy_t { HEURISTICS_CHOICE, ALL };

namespace detail {
cudnnStatus_t create_handle(cudnnHandle_t* handle);
cudnnStatus_t destroy_handle(cudnnHandle_t handle);
cudnnStatus_t set_stream(cudnnHandle_t handle, cudaStream_t stream);
const char* get_error_string(cudnnStatus_t status);
std::size_t get_backend_version();
}  // namespace detail

// Graphs for devices that are not here are not emulated.
class DeviceProperties {
 public:
  error_t deserialize(const std::vector<std::uint8_t>& serialized_buf);
};

namespace graph {

class Tensor_attributes {
 public:
  using uid_t = std::int64_t;

  Tensor_attributes& set_name(const std::string& value) { return set(name_, value); }
  Tensor_attributes& set_uid(uid_t value) { return set(uid_, value); }
  Tensor_attributes& set_dim(const std::vector<std::int64_t>& value) { return set(dim_, value); }
  Tensor_attributes& set_stride(const std::vector<std::int64_t>& value) {
    return set(stride_, value);
  }
  Tensor_attributes& set_data_type(DataType_t value) { return set(type_, value); }
  Tensor_attributes& set_output(bool value) { return set(is_output_, value); }
  Tensor_attributes& set_ragged_offset(const std::shared_ptr<Tensor_attributes>& value) {
    return set(ragged_offset_, value);
  }

  const std::string& get_name() const { return name_; }
  uid_t get_uid() const { return uid_; }
  std::vector<std::int64_t> get_dim() const { return dim_; }
  std::vector<std::int64_t> get_stride() const { return stride_; }
  DataType_t get_data_type() const { return type_; }
  bool get_is_virtual() const { return !is_output_; }
  std::shared_ptr<Tensor_attributes> get_ragged_offset() const { return ragged_offset_; }

 private:
  template <typename T>
  Tensor_attributes& set(T& member, const T& value) {
    member = value;
    return *this;
  }

  std::string name_;
  uid_t uid_ = 0;
  std::vector<std::int64_t> dim_, stride_;
  DataType_t type_ = DataType_t::NOT_SET;
  bool is_output_ = false;
  std::shared_ptr<Tensor_attributes> ragged_offset_;
};
using TensorPointer = std::shared_ptr<Tensor_attributes>;

// What both directions are told.
struct AttentionOptions {
  std::string name;
  std::optional<float> scale;
  bool padding_mask = false;
  TensorPointer seq_len_q, seq_len_kv;
  std::optional<std::int64_t> max_total_q, max_total_kv;
  DiagonalAlignment_t alignment = DiagonalAlignment_t::TOP_LEFT;
  std::optional<int> right_bound;
  bool generate_stats = false;
  bool deterministic = false;
};

template <typename Self>
class AttentionAttributes {
 public:
  Self& set_name(const std::string& value) { return set(options.name, value); }
  Self& set_attn_scale(float value) { return set(options.scale, value); }
  Self& set_padding_mask(bool value) { return set(options.padding_mask, value); }
  Self& set_seq_len_q(TensorPointer value) { return set(options.seq_len_q, value); }
  Self& set_seq_len_kv(TensorPointer value) { return set(options.seq_len_kv, value); }
  Self& set_max_total_seq_len_q(std::int64_t value) { return set(options.max_total_q, value); }
  Self& set_max_total_seq_len_kv(std::int64_t value) { return set(options.max_total_kv, value); }
  Self& set_diagonal_alignment(DiagonalAlignment_t value) { return set(options.alignment, value); }
  Self& set_diagonal_band_right_bound(int value) { return set(options.right_bound, value); }

  AttentionOptions options;  // for the emulation

 protected:
  template <typename Member, typename T>
  Self& set(Member& member, const T& value) {
    member = value;
    return static_cast<Self&>(*this);
  }
};
class SDPA_attributes : public AttentionAttributes<SDPA_attributes> {
 public:
  SDPA_attributes& set_generate_stats(bool value) { return set(options.generate_stats, value); }
};
class SDPA_backward_attributes : public AttentionAttributes<SDPA_backward_attributes> {
 public:
  SDPA_backward_attributes& set_deterministic_algorithm(bool value) {
    return set(options.deterministic, value);
  }
};

// One node of attention; what was asked for, in the emulation's words.
struct AttentionNode {
  bool backward = false;
  AttentionOptions options;
  TensorPointer q, k, v, o, stats, d_o, dq, dk, dv;
};

class Graph {
 public:
  Graph& set_io_data_type(DataType_t type);
  Graph& set_intermediate_data_type(DataType_t type);
  Graph& set_compute_data_type(DataType_t type);
  Graph& set_sm_version(std::int32_t version);
  Graph& set_device_properties(std::shared_ptr<const DeviceProperties> properties);

  TensorPointer tensor(const Tensor_attributes& tensor);
  std::array<TensorPointer, 2> sdpa(TensorPointer q, TensorPointer k, TensorPointer v,
                                    SDPA_attributes attributes);
  std::array<TensorPointer, 3> sdpa_backward(TensorPointer q, TensorPointer k, TensorPointer v,
                                             TensorPointer o, TensorPointer dO, TensorPointer stats,
                                             SDPA_backward_attributes attributes);

  error_t validate();
  error_t build_operation_graph(cudnnHandle_t handle);
  error_t create_execution_plans(const std::vector<HeurMode_t>& modes);
  error_t check_support();
  error_t build_plans(BuildPlanPolicy_t policy = BuildPlanPolicy_t::HEURISTICS_CHOICE,
                      bool do_multithreaded_builds = false);
  error_t get_workspace_size(std::int64_t& bytes) const;
  error_t get_plan_name(std::string& name) const;
  error_t execute(cudnnHandle_t handle, std::unordered_map<std::int64_t, void*>& pointers,
                  void* workspace) const;

 private:
  enum class Stage { described, validated, lowered, found, supported, built };

  TensorPointer output(const char* name);
  error_t expect(Stage stage, const char* call) const;

  DataType_t io_type_ = DataType_t::NOT_SET, intermediate_type_ = DataType_t::NOT_SET,
             compute_type_ = DataType_t::NOT_SET;
  std::int32_t sm_version_ = 0;  // 0: of the device
  std::vector<TensorPointer> tensors_;
  std::optional<AttentionNode> node_;
  Stage stage_ = Stage::described;
  int device_ = 0;
};

}  // namespace graph
}  // namespace cudnn_frontend
