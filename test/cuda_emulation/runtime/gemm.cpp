#include "test/cuda_emulation/runtime/gemm.h"

#include <cstring>
#include <map>
#include <vector>

#include "cuda_bf16.h"
#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/streams.h"
#include "test/cuda_emulation/runtime/violation.h"

namespace cuda_emulation {
namespace {

struct LastRefusal {
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  std::string words;
};
thread_local LastRefusal t_refusal;

std::int64_t op_rows(const Matrix& m) {
  return m.transposed ? m.cols : m.rows;
}
std::int64_t op_cols(const Matrix& m) {
  return m.transposed ? m.rows : m.cols;
}

// The contiguous runs of a stored matrix: columns, or rows when row-major.
std::int64_t num_runs(const Matrix& m) {
  return m.row_major ? m.rows : m.cols;
}
std::int64_t run_length(const Matrix& m) {
  return m.row_major ? m.cols : m.rows;
}
char* run_start(const Matrix& m, std::int64_t run) {
  return static_cast<char*>(m.data) + static_cast<std::size_t>(run * m.ld) * element_bytes(m.type);
}

std::string describe_matrix(const char* name, const Matrix& m) {
  return text(name, " ", m.rows, " x ", m.cols, " ", type_name(m.type),
              m.row_major ? " row-major" : "", ", ld ", m.ld);
}

cublasStatus_t check_matrix(const Product& product, const char* name, const Matrix& m) {
  const auto bad = [&](const std::string& what) {
    return refuse(CUBLAS_STATUS_INVALID_VALUE,
                  text(product.call, ": ", describe_matrix(name, m), ": ", what));
  };
  if (m.rows < 0 || m.cols < 0) return bad("negative size");
  if (m.ld < run_length(m) || m.ld < 1)
    return bad(text("the leading dimension must be ", run_length(m), " at least"));
  const auto address = reinterpret_cast<std::uintptr_t>(m.data);
  if (address % element_bytes(m.type) != 0) return bad("misaligned pointer");
  return CUBLAS_STATUS_SUCCESS;
}

template <typename Number>
Number load(const char* p, cudaDataType_t type) {
  if (type == CUDA_R_64F) return static_cast<Number>(*reinterpret_cast<const double*>(p));
  if (type == CUDA_R_32F) return static_cast<Number>(*reinterpret_cast<const float*>(p));
  return static_cast<Number>(static_cast<float>(*reinterpret_cast<const __nv_bfloat16*>(p)));
}
template <typename Number>
void store(char* p, cudaDataType_t type, Number value) {
  if (type == CUDA_R_64F)
    *reinterpret_cast<double*>(p) = static_cast<double>(value);
  else if (type == CUDA_R_32F)
    *reinterpret_cast<float*>(p) = static_cast<float>(value);
  else
    *reinterpret_cast<__nv_bfloat16*>(p) = __nv_bfloat16(static_cast<float>(value));
}

Matrix on_host(Matrix m) {
  m.data = device_memory::host_view(m.data);
  return m;
}

// op(m) with rows one after another, or op(m) transposed.
template <typename Number>
std::vector<Number> unpack(const Matrix& stored, bool transposed) {
  const Matrix m = on_host(stored);
  const std::int64_t rows = op_rows(m), cols = op_cols(m);
  std::vector<Number> out(static_cast<std::size_t>(rows * cols));
  const std::size_t size = element_bytes(m.type);
  for (std::int64_t run = 0; run < num_runs(m); ++run) {
    const char* from = run_start(m, run);
    for (std::int64_t i = 0; i < run_length(m); ++i, from += size) {
      const std::int64_t row = m.row_major ? run : i, col = m.row_major ? i : run;
      const std::int64_t op_row = m.transposed ? col : row, op_col = m.transposed ? row : col;
      out[static_cast<std::size_t>(transposed ? op_col * rows + op_row : op_row * cols + op_col)] =
          load<Number>(from, m.type);
    }
  }
  return out;
}

template <typename Number>
void multiply(const Product& product) {
  const std::int64_t m = op_rows(product.a), n = op_cols(product.b), k = op_cols(product.a);
  // D^T = B^T A^T, row by row of D^T: the inner loop runs along the columns of D, as they lie in
  // memory.
  const std::vector<Number> a = unpack<Number>(product.a, true);  // (k, m)
  const std::vector<Number> b = unpack<Number>(product.b, true);  // (n, k)
  const Matrix c = on_host(product.c), d = on_host(product.d);
  std::vector<Number> sum(static_cast<std::size_t>(m));
  const std::size_t c_size = element_bytes(c.type), d_size = element_bytes(d.type);
  const auto place = [](const Matrix& x, std::int64_t row, std::int64_t col) {
    return static_cast<std::size_t>(x.row_major ? row * x.ld + col : row + col * x.ld);
  };
  for (std::int64_t j = 0; j < n; ++j) {
    std::fill(sum.begin(), sum.end(), Number(0));
    for (std::int64_t l = 0; l < k; ++l) {
      const Number factor = b[static_cast<std::size_t>(j * k + l)];
      const Number* column = a.data() + l * m;
      for (std::int64_t i = 0; i < m; ++i) sum[static_cast<std::size_t>(i)] += factor * column[i];
    }
    for (std::int64_t i = 0; i < m; ++i) {
      Number value = static_cast<Number>(product.alpha) * sum[static_cast<std::size_t>(i)];
      if (product.beta != 0.0)
        value += static_cast<Number>(product.beta) *
                 load<Number>(static_cast<const char*>(c.data) + place(c, i, j) * c_size, c.type);
      store<Number>(static_cast<char*>(d.data) + place(d, i, j) * d_size, d.type, value);
    }
  }
}

void touch(const Matrix& m, int device, const std::string& what, bool write) {
  const std::size_t bytes = static_cast<std::size_t>(run_length(m)) * element_bytes(m.type);
  for (std::int64_t run = 0; run < num_runs(m); ++run) {
    if (write)
      device_memory::write_range(run_start(m, run), bytes, device, what.c_str());
    else
      device_memory::read_range(run_start(m, run), bytes, device, what.c_str());
  }
}

}  // namespace

std::size_t element_bytes(cudaDataType_t type) {
  return type == CUDA_R_32F ? 4 : type == CUDA_R_16BF ? 2 : type == CUDA_R_64F ? 8 : 0;
}
const char* type_name(cudaDataType_t type) {
  return type == CUDA_R_32F    ? "f32"
         : type == CUDA_R_16BF ? "bf16"
         : type == CUDA_R_64F  ? "f64"
                               : "unknown type";
}

cublasStatus_t refuse(cublasStatus_t status, const std::string& words) {
  t_refusal = {status, words};
  return status;
}

// The rows of the libraries' tables of types that this project may use.
cublasStatus_t check_types(const Product& p) {
  const cudaDataType_t ab = p.a.type, cd = p.c.type;
  const bool same = p.a.type == p.b.type && p.c.type == p.d.type;
  bool known = false;
  switch (p.compute) {
    case CUBLAS_COMPUTE_32F:
    case CUBLAS_COMPUTE_32F_PEDANTIC:
      known = (ab == CUDA_R_32F && cd == CUDA_R_32F) ||
              (ab == CUDA_R_16BF && (cd == CUDA_R_16BF || cd == CUDA_R_32F));
      break;
    case CUBLAS_COMPUTE_32F_FAST_TF32:
    case CUBLAS_COMPUTE_32F_FAST_16BF:
      known = ab == CUDA_R_32F && cd == CUDA_R_32F;
      break;
    case CUBLAS_COMPUTE_64F:
    case CUBLAS_COMPUTE_64F_PEDANTIC:
      known = ab == CUDA_R_64F && cd == CUDA_R_64F;
      break;
    default:
      break;
  }
  if (same && known) return CUBLAS_STATUS_SUCCESS;
  return refuse(CUBLAS_STATUS_NOT_SUPPORTED,
                text(p.call, ": A ", type_name(p.a.type), ", B ", type_name(p.b.type), ", C ",
                     type_name(p.c.type), ", D ", type_name(p.d.type), " with compute type ",
                     static_cast<int>(p.compute)));
}

cublasStatus_t check_product(const Product& p) {
  if (const cublasStatus_t status = check_types(p); status != CUBLAS_STATUS_SUCCESS) return status;
  const Matrix* all[] = {&p.a, &p.b, &p.c, &p.d};
  const char* names[] = {"A", "B", "C", "D"};
  for (int i = 0; i < 4; ++i)
    if (const cublasStatus_t status = check_matrix(p, names[i], *all[i]);
        status != CUBLAS_STATUS_SUCCESS)
      return status;
  const bool fits = op_cols(p.a) == op_rows(p.b) && p.d.rows == op_rows(p.a) &&
                    p.d.cols == op_cols(p.b) && p.c.rows == p.d.rows && p.c.cols == p.d.cols;
  if (fits) return CUBLAS_STATUS_SUCCESS;
  return refuse(
      CUBLAS_STATUS_INVALID_VALUE,
      text(p.call, ": op(A) ", op_rows(p.a), " x ", op_cols(p.a), ", op(B) ", op_rows(p.b), " x ",
           op_cols(p.b), ", C ", p.c.rows, " x ", p.c.cols, ", D ", p.d.rows, " x ", p.d.cols));
}

void run_product(const Product& p, int device) {
  if (p.d.rows == 0 || p.d.cols == 0) return;
  const std::string call = p.call;
  touch(p.a, device, call + ", matrix A", false);
  touch(p.b, device, call + ", matrix B", false);
  if (p.beta != 0.0) touch(p.c, device, call + ", matrix C", false);
  touch(p.d, device, call + ", the result", true);
  if (p.compute == CUBLAS_COMPUTE_64F || p.compute == CUBLAS_COMPUTE_64F_PEDANTIC)
    multiply<double>(p);
  else
    multiply<float>(p);
}

}  // namespace cuda_emulation

const char* cublasGetStatusName(cublasStatus_t status) {
  static const std::map<cublasStatus_t, const char*> names{
      {CUBLAS_STATUS_SUCCESS, "CUBLAS_STATUS_SUCCESS"},
      {CUBLAS_STATUS_NOT_INITIALIZED, "CUBLAS_STATUS_NOT_INITIALIZED"},
      {CUBLAS_STATUS_ALLOC_FAILED, "CUBLAS_STATUS_ALLOC_FAILED"},
      {CUBLAS_STATUS_INVALID_VALUE, "CUBLAS_STATUS_INVALID_VALUE"},
      {CUBLAS_STATUS_ARCH_MISMATCH, "CUBLAS_STATUS_ARCH_MISMATCH"},
      {CUBLAS_STATUS_MAPPING_ERROR, "CUBLAS_STATUS_MAPPING_ERROR"},
      {CUBLAS_STATUS_EXECUTION_FAILED, "CUBLAS_STATUS_EXECUTION_FAILED"},
      {CUBLAS_STATUS_INTERNAL_ERROR, "CUBLAS_STATUS_INTERNAL_ERROR"},
      {CUBLAS_STATUS_NOT_SUPPORTED, "CUBLAS_STATUS_NOT_SUPPORTED"},
      {CUBLAS_STATUS_LICENSE_ERROR, "CUBLAS_STATUS_LICENSE_ERROR"}};
  const auto found = names.find(status);
  return found == names.end() ? "unknown status" : found->second;
}

const char* cublasGetStatusString(cublasStatus_t status) {
  using cuda_emulation::t_refusal;
  if (status == CUBLAS_STATUS_SUCCESS) return "success";
  if (t_refusal.status != status) return "the request failed";
  return cuda_emulation::intern("the request was refused [" + t_refusal.words + "]");
}
