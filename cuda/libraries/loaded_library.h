// A shared library that is opened when its first function is called: an executable with the CUDA
// backend also starts, and does all that needs no device, where CUDA's libraries are not installed.
#pragma once

#include <mutex>
#include <string>
#include <utility>

namespace openmoe::cuda {

class LoadedLibrary {
 public:
  // `file`: as the linker names it, "libnccl.so.2". `way_out`: what to do where it is missing.
  LoadedLibrary(std::string file, std::string way_out)
      : file_(std::move(file)), way_out_(std::move(way_out)) {}
  LoadedLibrary(const LoadedLibrary&) = delete;
  LoadedLibrary& operator=(const LoadedLibrary&) = delete;

  // Throws UserError where the library cannot be opened or has no such function.
  void* function(const char* name);

 private:
  std::mutex mutex_;
  std::string file_, way_out_;
  void* handle_ = nullptr;  // open until the process ends
};

}  // namespace openmoe::cuda

// Defines a function of a library, as its header declares it, as a call of the one that library()
// opens.
#define OPENMOE_FORWARD(library, result, name, parameters, arguments)        \
  extern "C" result name parameters {                                        \
    static const auto function =                                             \
        reinterpret_cast<result(*) parameters>((library)().function(#name)); \
    return function arguments;                                               \
  }
