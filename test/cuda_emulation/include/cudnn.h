// cuDNN as far as this project calls it: handles. Graphs: cudnn_frontend.h.
#pragma once

#include "cuda_runtime_api.h"

struct cudnnContext;
using cudnnHandle_t = cudnnContext*;

enum cudnnStatus_t {
  CUDNN_STATUS_SUCCESS = 0,
  CUDNN_STATUS_NOT_INITIALIZED = 1001,
  CUDNN_STATUS_BAD_PARAM = 2000,
  CUDNN_STATUS_NOT_SUPPORTED = 3000,
};
