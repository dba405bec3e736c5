// Libraries that are opened when they are first called, and what is said where one is missing.
#include "cuda/libraries/loaded_library.h"

#include "core/base/error.h"
#include "test/support/catch.h"

using openmoe::UserError;
using openmoe::cuda::LoadedLibrary;

namespace {

std::string words_of(LoadedLibrary& library, const char* function) {
  try {
    library.function(function);
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a library is opened when it is first called, and a missing one is named", "[cuda]") {
  LoadedLibrary present("libm.so.6", "install it");
  const auto cosine = reinterpret_cast<double (*)(double)>(present.function("cos"));
  CHECK(cosine(0.0) == 1.0);
  const std::string no_function = words_of(present, "no_such_function");
  CHECK(no_function.find("libm.so.6 has no function no_such_function") != std::string::npos);
  CHECK(no_function.find("install it") != std::string::npos);

  LoadedLibrary missing("libopenmoe_missing.so.1", "install it");
  const std::string no_library = words_of(missing, "cos");
  CHECK(no_library.find("libopenmoe_missing.so.1 cannot be loaded") != std::string::npos);
  CHECK(no_library.find("install it") != std::string::npos);
}
