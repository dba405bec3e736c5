// A libcuda.so.1 for machines without a GPU, as far as cuDNN asks for one while it compiles kernels
// for a device that is not here: modules load, everything else is refused. Nothing can run on it.
// Names and order of arguments are those of cuda.h; a function that is refused needs none.
namespace {

constexpr int kSuccess = 0, kStubLibrary = 34;
int g_something = 0;  // what handles point at

int give(void** handle) {
  *handle = &g_something;
  return kSuccess;
}

}  // namespace

#define OPENMOE_REFUSED(name) \
  int name() {                \
    return kStubLibrary;      \
  }

extern "C" {

int cuLibraryLoadData(void** library, const void*, void*, void*, unsigned, void*, void*, unsigned) {
  return give(library);
}
int cuLibraryUnload(void*) {
  return kSuccess;
}
int cuLibraryGetKernel(void** kernel, void*, const char*) {
  return give(kernel);
}
int cuKernelSetAttribute(int, int, void*, int) {
  return kSuccess;
}
int cuKernelGetAttribute(int* value, int, void*, int) {
  *value = 0;
  return kSuccess;
}

OPENMOE_REFUSED(cuCtxGetCurrent)
OPENMOE_REFUSED(cuCtxGetDevice)
OPENMOE_REFUSED(cuCtxGetLimit)
OPENMOE_REFUSED(cuCtxPopCurrent)
OPENMOE_REFUSED(cuCtxPushCurrent)
OPENMOE_REFUSED(cuDeviceGet)
OPENMOE_REFUSED(cuDeviceGetAttribute)
OPENMOE_REFUSED(cuDeviceGetCount)
OPENMOE_REFUSED(cuDevicePrimaryCtxRelease)
OPENMOE_REFUSED(cuDevicePrimaryCtxReset)
OPENMOE_REFUSED(cuDevicePrimaryCtxRetain)
OPENMOE_REFUSED(cuDriverGetVersion)
OPENMOE_REFUSED(cuFuncGetAttribute)
OPENMOE_REFUSED(cuFuncSetAttribute)
OPENMOE_REFUSED(cuGetErrorName)
OPENMOE_REFUSED(cuGetErrorString)
OPENMOE_REFUSED(cuInit)
OPENMOE_REFUSED(cuLaunchCooperativeKernel)
OPENMOE_REFUSED(cuLaunchKernel)
OPENMOE_REFUSED(cuLaunchKernelEx)
OPENMOE_REFUSED(cuLibraryLoadFromFile)
OPENMOE_REFUSED(cuLinkAddData)
OPENMOE_REFUSED(cuLinkAddData_v2)
OPENMOE_REFUSED(cuLinkAddFile_v2)
OPENMOE_REFUSED(cuLinkComplete)
OPENMOE_REFUSED(cuLinkCreate)
OPENMOE_REFUSED(cuLinkCreate_v2)
OPENMOE_REFUSED(cuLinkDestroy)
OPENMOE_REFUSED(cuMemcpyDtoH_v2)
OPENMOE_REFUSED(cuModuleGetFunction)
OPENMOE_REFUSED(cuModuleGetGlobal_v2)
OPENMOE_REFUSED(cuModuleLoadData)
OPENMOE_REFUSED(cuModuleLoadDataEx)
OPENMOE_REFUSED(cuModuleLoadFatBinary)
OPENMOE_REFUSED(cuModuleUnload)
OPENMOE_REFUSED(cuOccupancyMaxActiveBlocksPerMultiprocessor)
OPENMOE_REFUSED(cuOccupancyMaxPotentialClusterSize)
OPENMOE_REFUSED(cuStreamGetCtx)
OPENMOE_REFUSED(cuStreamSynchronize)
OPENMOE_REFUSED(cuTensorMapEncodeTiled)

}  // extern "C"
