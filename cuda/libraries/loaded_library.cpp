#include "cuda/libraries/loaded_library.h"

#include <dlfcn.h>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe::cuda {

void* LoadedLibrary::function(const char* name) {
  const std::scoped_lock lock(mutex_);
  if (handle_ == nullptr) handle_ = dlopen(file_.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle_ == nullptr)
    throw UserError(
        concat("--device cuda: ", file_, " cannot be loaded (", dlerror(), "); ", way_out_));
  void* const address = dlsym(handle_, name);
  if (address == nullptr)
    throw UserError(concat("--device cuda: ", file_, " has no function ", name,
                           ", so it is of another version than openmoe was built with; ",
                           way_out_));
  return address;
}

}  // namespace openmoe::cuda
