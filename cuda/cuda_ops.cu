// The device, its memory, and the element-wise ops.
#include "cuda/cuda_ops.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>

#include "core/base/check.h"
#include "core/base/error.h"
#include "cuda/check.h"
#include "cuda/device.cuh"
#include "cuda/device_ops.h"
#include "cuda/kernel_shapes.h"
#include "cuda/launch.h"
#include "cuda/scratch_sizes.h"

namespace openmoe {
namespace cuda {
namespace {

// Blocks of a reduction to one number: enough for any device, and a constant, so that the order of
// the sum is one too.
constexpr std::int64_t kSumBlocks = 1024;
constexpr int kThreads = 256;

// hot: at least 6 blocks per SM
// bytes: 12 of 12 per element of y, 32 in flight per thread
__global__ void __launch_bounds__(kThreads)
    add_kernel(float* y, const float* x, std::int64_t n, std::int64_t vectors) {
  for (std::int64_t i = global_thread(); i < vectors; i += num_global_threads()) {
    float sum[4], term[4];
    load(sum, y + 4 * i);
    load(term, x + 4 * i);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] += term[j];
    store(y + 4 * i, sum);
  }
  for (std::int64_t i = 4 * vectors + global_thread(); i < n; i += num_global_threads())
    y[i] += x[i];
}

// Eight elements at a time: one access of 16 bytes on the bf16 side, two on the f32 side.
constexpr int kConvertWidth = kVector<__nv_bfloat16>;

// hot: at least 4 blocks per SM
// bytes: 6 of 6 per element of to, 16 in flight per thread
template <typename To, typename From>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(To* to, const From* from, std::int64_t n, std::int64_t vectors) {
  for (std::int64_t i = global_thread(); i < vectors; i += num_global_threads()) {
    float value[kConvertWidth];
    load(value, from + kConvertWidth * i);
    store(to + kConvertWidth * i, value);
  }
  for (std::int64_t i = kConvertWidth * vectors + global_thread(); i < n; i += num_global_threads())
    to[i] = from_float<To>(to_float(from[i]));
}

// hot: at least 6 blocks per SM
// bytes: 8 of 8 per element of x, 16 in flight per thread
__global__ void __launch_bounds__(kThreads)
    multiply_kernel(float* x, float factor, std::int64_t n, std::int64_t vectors) {
  for (std::int64_t i = global_thread(); i < vectors; i += num_global_threads()) {
    float value[4];
    load(value, x + 4 * i);
#pragma unroll
    for (int j = 0; j < 4; ++j) value[j] *= factor;
    store(x + 4 * i, value);
  }
  for (std::int64_t i = 4 * vectors + global_thread(); i < n; i += num_global_threads())
    x[i] *= factor;
}

// partial[block] = sum of x^2 over the block's elements. Four squares add up in f32 before they go
// into f64, which is scarce on many devices.
// hot: at least 6 blocks per SM
// bytes: 4 of 4 per element of x, 16 in flight per thread
__global__ void __launch_bounds__(kThreads)
    sum_of_squares_kernel(double* partial, const float* x, std::int64_t n, std::int64_t vectors) {
  __shared__ double room[kWarp];
  double sum = 0.0;
  for (std::int64_t i = global_thread(); i < vectors; i += num_global_threads()) {
    float value[4];
    load(value, x + 4 * i);
    sum += static_cast<double>((value[0] * value[0] + value[1] * value[1]) +
                               (value[2] * value[2] + value[3] * value[3]));
  }
  for (std::int64_t i = 4 * vectors + global_thread(); i < n; i += num_global_threads())
    sum += static_cast<double>(x[i] * x[i]);
  sum = block_sum(sum, room);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    sum_kernel(double* total, const double* partial, std::int64_t count) {
  __shared__ double room[kWarp];
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
  sum = block_sum(sum, room);
  if (threadIdx.x == 0) *total = sum;
}

std::string version_text(int number) {
  return concat(number / 1000, ".", number % 1000 / 10);
}

constexpr int kOldestArchitecture = 80;

// Makes the device current.
void check_device(int device_index) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;  // stays 0 where the runtime finds no libcuda.so.1 at all
    OPENMOE_CUDA(cudaDriverGetVersion(&driver));
    if (driver == 0)
      throw UserError(
          "--device cuda: this machine has no NVIDIA driver (its libcuda.so.1 is not to be found); "
          "install the driver, run on a machine that has one, or use --device cpu");
    throw UserError(concat("--device cuda: the NVIDIA driver of this machine is for CUDA ",
                           version_text(driver), ", older than the CUDA ",
                           version_text(CUDART_VERSION),
                           " openmoe was built with; update the driver, build with an older "
                           "toolkit, or use --device cpu"));
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
    throw UserError(
        "--device cuda: no CUDA device is visible here (nvidia-smi lists them; "
        "CUDA_VISIBLE_DEVICES hides "
        "them); use --device cpu");
  OPENMOE_CUDA(error);
  if (device_index < 0 || device_index >= count)
    throw UserError(concat("--device cuda: device ", device_index,
                           " was asked for, this rank sees ", count, " (0 to ", count - 1,
                           "); start no more ranks per host than it has devices, or set "
                           "CUDA_VISIBLE_DEVICES"));
  OPENMOE_CUDA(cudaSetDevice(device_index));
  cudaFuncAttributes attributes{};
  const cudaError_t image = cudaFuncGetAttributes(&attributes, add_kernel);
  if (image == cudaErrorNoKernelImageForDevice) {
    int major = 0, minor = 0;
    OPENMOE_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_index));
    OPENMOE_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_index));
    const int architecture = 10 * major + minor;
    const std::string found =
        concat("--device cuda: device ", device_index, " has architecture sm_", architecture);
    if (architecture < kOldestArchitecture)
      throw UserError(concat(found, ", allowed: sm_", kOldestArchitecture,
                             " (A100) and newer, for its products of bf16; run on a newer device, "
                             "or use --device cpu"));
    throw UserError(concat(found,
                           ", which this openmoe was not built for; configure with "
                           "-DCMAKE_CUDA_ARCHITECTURES=",
                           architecture, " and build again, or use --device cpu"));
  }
  OPENMOE_CUDA(image);
}

}  // namespace
}  // namespace cuda

bool has_cuda_backend() {
  return true;
}

int num_cuda_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::unique_ptr<Ops> make_cuda_ops(int device_index) {
  return std::make_unique<CudaOps>(device_index);
}

std::string describe_cuda_device(int device_index) {
  cudaDeviceProp properties{};
  int driver = 0, runtime = 0;
  OPENMOE_CUDA(cudaGetDeviceProperties(&properties, device_index));
  OPENMOE_CUDA(cudaDriverGetVersion(&driver));
  OPENMOE_CUDA(cudaRuntimeGetVersion(&runtime));
  return concat(properties.name, ", sm_", properties.major, properties.minor, ", ",
                static_cast<double>(properties.totalGlobalMem >> 20) / 1024.0, " GiB, driver ",
                cuda::version_text(driver), ", runtime ", cuda::version_text(runtime));
}

std::string cuda_device_id(int device_index) {
  cudaDeviceProp properties{};
  OPENMOE_CUDA(cudaGetDeviceProperties(&properties, device_index));
  std::string id = "GPU-";
  for (std::size_t i = 0; i < sizeof properties.uuid.bytes; ++i) {
    char byte[4];
    std::snprintf(byte, sizeof byte, "%02x",
                  static_cast<unsigned>(static_cast<unsigned char>(properties.uuid.bytes[i])));
    id += (i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "") + std::string(byte);
  }
  return id;
}

namespace cuda {
namespace {

// The stream of a device that was checked and made current.
cudaStream_t open_stream(int device_index) {
  check_device(device_index);
  cudaStream_t stream = nullptr;
  OPENMOE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return stream;
}

}  // namespace
}  // namespace cuda

CudaOps::CudaOps(int device_index)
    : device_index_(device_index),
      stream_(cuda::open_stream(device_index)),
      pinned_(stream_),
      gemm_(stream_),
      cudnn_(stream_) {
  OPENMOE_CUDA(cudaMallocHost(reinterpret_cast<void**>(&report_), sizeof(Report)));
  OPENMOE_CUDA(cudaMalloc(reinterpret_cast<void**>(&device_report_), sizeof(Report)));
  OPENMOE_CUDA(cudaMemsetAsync(device_report_, 0, sizeof(Report), stream_));
  for (cudaStream_t* stream : {&transfer_stream_, &download_stream_})
    OPENMOE_CUDA(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
  for (cudaEvent_t* event : {&computed_, &downloaded_})
    OPENMOE_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  for (Staging& staging : staging_) {
    OPENMOE_CUDA(cudaMallocHost(&staging.data, static_cast<std::size_t>(kStagingBytes)));
    OPENMOE_CUDA(cudaEventCreateWithFlags(&staging.is_free, cudaEventDisableTiming));
  }
}

CudaOps::~CudaOps() {
  cudaStreamSynchronize(stream_);
  cudaFree(rope_table_.cosines);
  cudaFree(device_report_);
  cudaFreeHost(report_);
  cudaStreamSynchronize(download_stream_);
  for (const Staging& staging : staging_) {
    cudaFreeHost(staging.data);
    cudaEventDestroy(staging.is_free);
  }
  for (const cudaEvent_t event : {computed_, downloaded_}) cudaEventDestroy(event);
  for (const cudaStream_t stream : {transfer_stream_, download_stream_}) cudaStreamDestroy(stream);
}

const CudaOps::Report& CudaOps::wait_for_report() {
  OPENMOE_CUDA(
      cudaMemcpyAsync(report_, device_report_, sizeof(Report), cudaMemcpyDeviceToHost, stream_));
  OPENMOE_CUDA(cudaStreamSynchronize(stream_));
  OPENMOE_CHECK(report_->bad_id == 0, "embedding: a token id is outside the table");
  OPENMOE_CHECK(report_->bad_target == 0,
                "softmax_cross_entropy: a target is outside the vocabulary");
  return *report_;
}

void* CudaOps::allocate_bytes(std::int64_t bytes) {
  OPENMOE_CHECK(bytes >= 0, bytes, " bytes");
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<std::size_t>(bytes > 0 ? bytes : 1));
  if (error == cudaErrorMemoryAllocation) {
    std::size_t available = 0, total = 0;
    OPENMOE_CUDA(cudaMemGetInfo(&available, &total));
    throw RuntimeFault(concat("cannot allocate ", bytes, " bytes (",
                              static_cast<double>(bytes) / (1 << 30), " GiB) on CUDA device ",
                              device_index_, ": ", static_cast<double>(available) / (1 << 30),
                              " GiB of ", static_cast<double>(total) / (1 << 30),
                              " GiB are free. `openmoe plan` prints what the memory is for; lower "
                              "parallel.micro_batch_rows or raise parallel.ep"));
  }
  OPENMOE_CUDA(error);
  return data;
}

namespace {

constexpr std::int64_t kWorkspaceAlignment = 256;

}  // namespace

std::int64_t CudaOps::workspace_bytes(const WorkSizes& sizes) {
  std::int64_t scratch =
      std::max({cuda::sum_of_squares_scratch(),
                cuda::embedding_backward_scratch(sizes.num_tokens, sizes.d_model),
                cuda::norm_backward_scratch(sizes.num_tokens, sizes.d_model),
                cuda::cross_entropy_scratch(sizes.loss_rows), attention_scratch(sizes.attention)});
  for (const WorkSizes::Update& update : sizes.updates)
    scratch = std::max(
        scratch, update.factored
                     ? cuda::adafactor_factored_scratch(update.stack, update.rows, update.columns)
                     : cuda::adafactor_full_scratch(update.stack * update.rows * update.columns));
  return cuda::Gemm::workspace_bytes() + scratch + kWorkspaceAlignment;
}

void CudaOps::use_workspace(Tensor memory) {
  if (!memory) {
    OPENMOE_CUDA(cudaStreamSynchronize(stream_));
    gemm_.use_workspace(nullptr);
    scratch_.use(nullptr, 0);
    return;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data);
  const auto skip = static_cast<std::int64_t>(
      (kWorkspaceAlignment - address % kWorkspaceAlignment) % kWorkspaceAlignment);
  char* const begin = static_cast<char*>(memory.data) + skip;
  gemm_.use_workspace(begin);
  scratch_.use(begin + cuda::Gemm::workspace_bytes(),
               memory.size_bytes() - skip - cuda::Gemm::workspace_bytes());
}

void CudaOps::free_bytes(void* data, std::int64_t) {
  OPENMOE_CUDA(cudaFree(data));
}

void CudaOps::do_zero(Tensor x) {
  if (x.num_elements() == 0) return;
  OPENMOE_CUDA(cudaMemsetAsync(x.data, 0, static_cast<std::size_t>(x.size_bytes()), stream_));
}

void* CudaOps::allocate_host_bytes(std::int64_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMallocHost(&data, static_cast<std::size_t>(bytes > 0 ? bytes : 1));
  if (error == cudaErrorMemoryAllocation)
    throw RuntimeFault(
        concat("cannot allocate ", bytes,
               " bytes of page-locked host memory for a checkpoint's snapshot; set "
               "run.checkpoint_in_background to false, or give the job more memory"));
  OPENMOE_CUDA(error);
  return data;
}

void CudaOps::free_host_bytes(void* data, std::int64_t) {
  OPENMOE_CUDA(cudaFreeHost(data));
}

// From host memory the call returns when the bytes have left it; to host memory, when they are
// there.
void CudaOps::do_copy(Tensor dst, Tensor src) {
  if (src.num_elements() == 0) return;
  const bool from_host = src.device == Device::host, to_host = dst.device == Device::host;
  OPENMOE_CHECK(!(from_host && to_host), "copy between two host tensors on the cuda device");
  if (from_host) return upload(dst, src);
  OPENMOE_CUDA(cudaMemcpyAsync(dst.data, src.data, static_cast<std::size_t>(src.size_bytes()),
                               to_host ? cudaMemcpyDeviceToHost : cudaMemcpyDeviceToDevice,
                               stream_));
  if (to_host) OPENMOE_CUDA(cudaStreamSynchronize(stream_));
}

void CudaOps::upload(Tensor dst, Tensor src) {
  const auto bytes = static_cast<std::size_t>(src.size_bytes());
  if (src.size_bytes() > kStagingBytes) {
    OPENMOE_CUDA(cudaMemcpyAsync(dst.data, src.data, bytes, cudaMemcpyHostToDevice, stream_));
    OPENMOE_CUDA(cudaStreamSynchronize(stream_));
    return;
  }
  const Staging& staging = staging_[next_staging_];
  next_staging_ = (next_staging_ + 1) % staging_.size();
  OPENMOE_CUDA(cudaEventSynchronize(staging.is_free));
  std::memcpy(staging.data, src.data, bytes);
  OPENMOE_CUDA(cudaMemcpyAsync(dst.data, staging.data, bytes, cudaMemcpyHostToDevice, stream_));
  OPENMOE_CUDA(cudaEventRecord(staging.is_free, stream_));
}

// On a stream of its own, after the ops so far.
void CudaOps::do_download(Tensor dst, Tensor src) {
  if (src.num_elements() == 0) return;
  OPENMOE_CUDA(cudaEventRecord(computed_, stream_));
  OPENMOE_CUDA(cudaStreamWaitEvent(download_stream_, computed_, 0));
  OPENMOE_CUDA(cudaMemcpyAsync(dst.data, src.data, static_cast<std::size_t>(src.size_bytes()),
                               cudaMemcpyDeviceToHost, download_stream_));
  OPENMOE_CUDA(cudaEventRecord(downloaded_, download_stream_));
  may_download_ = true;
}

bool CudaOps::downloads_are_done() {
  const cudaError_t state = cudaEventQuery(downloaded_);
  if (state == cudaErrorNotReady) return false;
  OPENMOE_CUDA(state);
  return true;
}

void CudaOps::finish_downloads() {
  OPENMOE_CUDA(cudaEventSynchronize(downloaded_));
}

void CudaOps::wait_for_downloads() {
  if (!may_download_) return;
  OPENMOE_CUDA(cudaStreamWaitEvent(stream_, downloaded_, 0));
  may_download_ = false;
}

void CudaOps::do_add_accumulate(Tensor y, Tensor x) {
  const std::int64_t n = x.num_elements();
  const std::int64_t vectors = cuda::can_vectorise(4, 0, y, x) ? n / 4 : 0;
  cuda::launch(stream_, cuda::blocks_for(n, 4 * cuda::kThreads), cuda::add_kernel, y.as<float>(),
               x.as<float>(), n, vectors);
}

void CudaOps::do_convert(Tensor dst, Tensor src) {
  constexpr int kWidth = cuda::kConvertWidth;
  const std::int64_t n = src.num_elements();
  const std::int64_t vectors = cuda::can_vectorise(kWidth, 0, dst, src) ? n / kWidth : 0;
  const auto shape = cuda::blocks_for(vectors > 0 ? vectors : n, cuda::kThreads);
  if (dst.dtype == DType::bf16)
    cuda::launch(stream_, shape, cuda::convert_kernel<__nv_bfloat16, float>,
                 dst.as<__nv_bfloat16>(), src.as<float>(), n, vectors);
  else
    cuda::launch(stream_, shape, cuda::convert_kernel<float, __nv_bfloat16>, dst.as<float>(),
                 src.as<__nv_bfloat16>(), n, vectors);
}

void CudaOps::do_multiply(Tensor x, float factor) {
  const std::int64_t n = x.num_elements();
  const std::int64_t vectors = cuda::can_vectorise(4, 0, x) ? n / 4 : 0;
  cuda::launch(stream_, cuda::blocks_for(n, 4 * cuda::kThreads), cuda::multiply_kernel,
               x.as<float>(), factor, n, vectors);
}

std::int64_t cuda::sum_of_squares_scratch() {
  return kSumBlocks * static_cast<std::int64_t>(sizeof(double));
}

void CudaOps::do_sums_of_squares(std::span<double> sums, std::span<const Tensor> xs) {
  double* const partial = static_cast<double*>(scratch_.reserve(cuda::sum_of_squares_scratch()));
  for (std::size_t first = 0; first < xs.size(); first += kMostSums) {
    const std::size_t count = std::min(kMostSums, xs.size() - first);
    for (std::size_t i = 0; i < count; ++i) {
      const Tensor& x = xs[first + i];
      const std::int64_t n = x.num_elements();
      const std::int64_t vectors = cuda::can_vectorise(4, 0, x) ? n / 4 : 0;
      const std::int64_t blocks = std::min(cuda::kSumBlocks, cuda::ceil_div(n, 4 * cuda::kThreads));
      if (n > 0)
        cuda::launch(stream_, {.blocks = blocks, .threads = cuda::kThreads},
                     cuda::sum_of_squares_kernel, partial, x.as<float>(), n, vectors);
      cuda::launch(stream_, {.blocks = 1, .threads = cuda::kThreads}, cuda::sum_kernel,
                   &device_report_->values[i], partial, blocks);
    }
    const Report& report = wait_for_report();
    std::copy_n(report.values, count, sums.begin() + static_cast<std::ptrdiff_t>(first));
  }
}

}  // namespace openmoe
