// The product behind cuBLAS and cuBLASLt, with the checks they share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cublas_v2.h"

namespace cuda_emulation {

std::size_t element_bytes(cudaDataType_t type);  // 0: not emulated
const char* type_name(cudaDataType_t type);

// A stored matrix: `rows` x `cols`, element (i, j) at i * row_step + j * col_step.
struct Matrix {
  void* data = nullptr;
  cudaDataType_t type = CUDA_R_32F;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t ld = 0;
  bool row_major = false;
  bool transposed = false;  // the product reads its transpose
};

// D = alpha op(A) op(B) + beta C; C and D may be the same.
struct Product {
  const char* call = "";
  Matrix a, b, c, d;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  double alpha = 1.0;
  double beta = 0.0;
};

// The types, shapes, leading dimensions and alignments that the libraries take; remembers what is
// wrong.
cublasStatus_t check_types(const Product& product);
cublasStatus_t check_product(const Product& product);
// Runs as part of the running operation, on `device`.
void run_product(const Product& product, int device);

// Remembers the words for cublasGetStatusString.
cublasStatus_t refuse(cublasStatus_t status, const std::string& words);

}  // namespace cuda_emulation
