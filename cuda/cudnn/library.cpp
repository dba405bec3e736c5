#include "cuda/cudnn/library.h"

#include <cuda_runtime_api.h>
#include <cudnn_version.h>
#include <dlfcn.h>

#include <cstdlib>

#include "core/base/check.h"

// Where the frontend, compiled for loading at run time, looks cuDNN's functions up (its
// cudnn_frontend_shim.h).
namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;
}

namespace openmoe::cuda {
namespace {

// From 9.25 on cuDNN can do the deterministic backward in a workspace that does not grow with the
// square of the length, when the other way may use none. The frontend takes this from the
// environment only.
constexpr std::size_t kOrderedBackwardVersion = 92500;

std::string open() {
  const std::string name = concat("libcudnn.so.", CUDNN_MAJOR);
  // The frontend looks the CUDA runtime up by name too: of the version that is linked into this
  // executable. Where it finds none it throws in the middle of building a graph.
  setenv("CUDNN_FRONTEND_CUDART_LIB_NAME", concat("libcudart.so.", CUDART_VERSION / 1000).c_str(),
         0);
  const char* const runtime = std::getenv("CUDNN_FRONTEND_CUDART_LIB_NAME");
  if (dlopen(runtime, RTLD_NOW) == nullptr)
    return concat(runtime, ", which cuDNN's frontend needs, cannot be loaded (", dlerror(),
                  "): install the CUDA runtime or name its folder in LD_LIBRARY_PATH");
  cudnn_frontend::cudnn_dlhandle = dlopen(name.c_str(), RTLD_NOW);
  if (cudnn_frontend::cudnn_dlhandle == nullptr)
    return concat(name, " cannot be loaded (", dlerror(),
                  "): install cuDNN or name its folder in LD_LIBRARY_PATH");
  const auto version =
      reinterpret_cast<std::size_t (*)()>(dlsym(cudnn_frontend::cudnn_dlhandle, "cudnnGetVersion"));
  if (version == nullptr) return concat(name, " is no cuDNN: it has no cudnnGetVersion");
  if (version() >= kOrderedBackwardVersion)
    setenv("CUDNN_FRONTEND_ATTN_DP_WORKSPACE_LIMIT", "0", 0);
  return "";
}

}  // namespace

const std::string& open_cudnn() {
  static const std::string words = open();
  return words;
}

}  // namespace openmoe::cuda
