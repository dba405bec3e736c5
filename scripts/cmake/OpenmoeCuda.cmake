# The CUDA backend's compiler and targets.
#
# OPENMOE_CUDA: AUTO builds for devices where all that takes is found and says what is missing, ON demands it, OFF does without.
# With AUTO and ON the tests also run the same sources on the host emulation (test/cuda_emulation), which needs no CUDA.
set(OPENMOE_CUDA AUTO CACHE STRING "code for CUDA devices: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE OPENMOE_CUDA PROPERTY STRINGS AUTO ON OFF)

# cublasGemmGroupedBatchedEx came with this version.
set(OPENMOE_CUDA_NEEDED 12.5)

# Why there will be no code for devices: a fault where it is demanded.
macro(openmoe_without_cuda)
  if(OPENMOE_CUDA STREQUAL "AUTO")
    message(WARNING "openmoe is built without CUDA: " ${ARGN})
  else()
    message(FATAL_ERROR "OPENMOE_CUDA=${OPENMOE_CUDA}, but " ${ARGN} "; or build with -DOPENMOE_CUDA=OFF")
  endif()
endmacro()

set(OPENMOE_HAVE_CUDA OFF)
set(OPENMOE_HAVE_CUDNN OFF)
if(OPENMOE_CUDA)
  include(CheckLanguage)
  if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
  endif()
  # Machine code for sm_80 (which 8.6 and 8.9 run too) and sm_90, and PTX that the driver compiles for what comes later.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_EXTENSIONS OFF)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know the dialects of nvcc 13
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    endif()
    # The reports of ptxas are kept beside the objects for the test of the kernels' resources.
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_SOURCE_DIR}/scripts/ptxas_log.sh)
    if(CCACHE)
      list(APPEND CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
    endif()
    find_package(CUDAToolkit REQUIRED)
    find_library(OPENMOE_NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_LIBRARY_ROOT}/lib)
    find_path(OPENMOE_NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS OPENMOE_CUDA_NEEDED)
      openmoe_without_cuda("${CMAKE_CUDA_COMPILER} is of version ${CMAKE_CUDA_COMPILER_VERSION}, and ${OPENMOE_CUDA_NEEDED} is needed: "
                           "set CMAKE_CUDA_COMPILER to a newer nvcc")
    elseif(NOT OPENMOE_NCCL_LIBRARY OR NOT OPENMOE_NCCL_INCLUDE_DIR)
      openmoe_without_cuda("NCCL was not found beside ${CMAKE_CUDA_COMPILER}: install libnccl-dev, or point OPENMOE_NCCL_LIBRARY and "
                           "OPENMOE_NCCL_INCLUDE_DIR at it")
    else()
      set(OPENMOE_HAVE_CUDA ON)
      # cuDNN is opened at run time; to build for it, its headers and those of cudnn-frontend, which scripts/setup.sh fetches.
      find_path(OPENMOE_CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
      find_path(OPENMOE_CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h HINTS ${CMAKE_SOURCE_DIR}/build/cudnn-frontend/include)
      if(OPENMOE_CUDNN_INCLUDE_DIR AND OPENMOE_CUDNN_FRONTEND_INCLUDE_DIR)
        set(OPENMOE_HAVE_CUDNN ON)
      endif()
    endif()
  elseif(NOT OPENMOE_CUDA STREQUAL "AUTO")
    openmoe_without_cuda("no CUDA compiler was found: set CMAKE_CUDA_COMPILER to nvcc's path")
  endif()
endif()
message(STATUS "CUDA backend: ${OPENMOE_HAVE_CUDA} (OPENMOE_CUDA=${OPENMOE_CUDA})")
if(OPENMOE_HAVE_CUDA AND NOT OPENMOE_HAVE_CUDNN)
  message(STATUS "CUDA backend without cuDNN's attention: no cudnn.h (OPENMOE_CUDNN_INCLUDE_DIR) or no cudnn_frontend.h "
                 "(OPENMOE_CUDNN_FRONTEND_INCLUDE_DIR; scripts/setup.sh fetches it)")
endif()

# openmoe_cuda_sources(openmoe_cuda a.cu b.cpp DEVICE c.cpp EMULATED d.cpp): a library of these files for CUDA devices, where
# there is nvcc; and always, with the tests, <target>_emulated: the same files for the host emulation. Those behind DEVICE and
# EMULATED belong to one of the two alone.
function(openmoe_cuda_sources target)
  cmake_parse_arguments(arg "" "" "DEVICE;EMULATED" ${ARGN})
  foreach(kind IN ITEMS UNPARSED_ARGUMENTS DEVICE EMULATED)
    set(files_${kind} "")
    foreach(source IN LISTS arg_${kind})
      cmake_path(ABSOLUTE_PATH source NORMALIZE OUTPUT_VARIABLE absolute)
      list(APPEND files_${kind} ${absolute})
    endforeach()
  endforeach()
  set(sources ${files_UNPARSED_ARGUMENTS})
  set_property(GLOBAL APPEND PROPERTY OPENMOE_CUDA_TARGETS ${target})
  set_property(GLOBAL PROPERTY OPENMOE_CUDA_SOURCES_${target} ${sources} ${files_EMULATED})
  if(NOT OPENMOE_HAVE_CUDA)
    return()
  endif()
  add_library(${target} STATIC ${sources} ${files_DEVICE})
  # The line directives of nvcc's own files are not ISO; everything else that the host compiler warns about is an error.
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Werror;-Xptxas=-v;-lineinfo>")
  target_include_directories(${target} SYSTEM PRIVATE ${OPENMOE_NCCL_INCLUDE_DIR})
  if(OPENMOE_HAVE_CUDNN)
    target_include_directories(${target} SYSTEM PRIVATE ${OPENMOE_CUDNN_INCLUDE_DIR} ${OPENMOE_CUDNN_FRONTEND_INCLUDE_DIR})
    target_compile_definitions(${target} PRIVATE NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING)
  endif()
  # The runtime is linked in and opens the driver itself; cuda/libraries and cuda/cudnn open the other libraries at run time, at
  # first where this build found them. So a copied executable starts on any machine.
  target_link_libraries(${target} PUBLIC openmoe_core openmoe_parallel PRIVATE CUDA::cudart_static ${CMAKE_DL_LIBS})
  foreach(library IN ITEMS ${CUDA_cublas_LIBRARY} ${OPENMOE_NCCL_LIBRARY})
    cmake_path(GET library PARENT_PATH folder)
    target_link_options(${target} INTERFACE "LINKER:-rpath,${folder}")
  endforeach()
endfunction()
