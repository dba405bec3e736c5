# The CUDA backend on the emulated device: op by op against the CPU backend, then whole programs.
if(NOT TARGET openmoe_cuda_emulated)
  return()
endif()
file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*_test.cpp)
list(REMOVE_ITEM sources ${CMAKE_CURRENT_LIST_DIR}/built_kernels_test.cpp ${CMAKE_CURRENT_LIST_DIR}/cudnn_engines_test.cpp)
add_executable(test_cuda ${sources})
target_link_libraries(test_cuda PRIVATE openmoe_test_main openmoe_cuda_emulated)
openmoe_discover_tests(test_cuda cuda TIMEOUT 300 LABELS cuda)

# openmoe as it is, on emulated devices.
add_executable(openmoe_emulated ${CMAKE_SOURCE_DIR}/apps/main.cpp)
target_link_libraries(openmoe_emulated PRIVATE openmoe_apps openmoe_cuda_emulated)
set_target_properties(openmoe_emulated PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})

openmoe_golden_tests(CASES 1:1:1:6 2:1:1:6 4:2:2:6 FOLDER ${CMAKE_SOURCE_DIR}/test/golden WHAT "all files on devices"
                     BINARY openmoe_emulated OPTIONS --device cuda LABELS cuda)
openmoe_golden_tests(CASES 2:2:1:3 2:1:2:3 FOLDER ${CMAKE_SOURCE_DIR}/test/golden/bf16 WHAT "bf16 files on devices"
                     BINARY openmoe_emulated OPTIONS --device cuda LABELS cuda)

file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/programs/*_test.cpp)
add_executable(test_cuda_programs support/plain_main.cpp ${sources})
target_link_libraries(test_cuda_programs PRIVATE openmoe_test_support openmoe_core)
target_compile_definitions(test_cuda_programs PRIVATE OPENMOE_EMULATED_BINARY="${CMAKE_BINARY_DIR}/openmoe_emulated")
add_dependencies(test_cuda_programs openmoe openmoe_emulated)
openmoe_discover_tests(test_cuda_programs "cuda programs" TIMEOUT ${OPENMOE_TEST_TIMEOUT} LABELS "cuda\;mpi" FIXTURES_REQUIRED sample_shards
                       PROCESSORS 2)

# What nvcc made of the kernels.
if(OPENMOE_HAVE_CUDA)
  add_executable(test_cuda_kernels ${CMAKE_CURRENT_LIST_DIR}/built_kernels_test.cpp)
  target_link_libraries(test_cuda_kernels PRIVATE openmoe_test_main)
  target_compile_definitions(test_cuda_kernels PRIVATE
                             OPENMOE_TEST_CUDA_OBJECTS="${CMAKE_BINARY_DIR}/cuda/CMakeFiles/openmoe_cuda.dir")
  add_dependencies(test_cuda_kernels openmoe_cuda)
  openmoe_discover_tests(test_cuda_kernels cuda TIMEOUT 60 LABELS cuda)
  # So that a copied one starts there and says what is missing.
  add_test(NAME "cuda: the executable needs none of CUDA's libraries to start"
           COMMAND sh -c "readelf -d '$<TARGET_FILE:openmoe>' | grep NEEDED | { ! grep -iE 'libcu(da|blas|dnn)|nccl'; }")
  set_tests_properties("cuda: the executable needs none of CUDA's libraries to start" PROPERTIES TIMEOUT 60 LABELS cuda)
  add_test(NAME "cuda: the table of kernels is that of this build"
           COMMAND ${CMAKE_SOURCE_DIR}/scripts/kernel_table.py ${CMAKE_BINARY_DIR} --check)
  set_tests_properties("cuda: the table of kernels is that of this build" PROPERTIES TIMEOUT 60 LABELS cuda SKIP_RETURN_CODE 77)
endif()

# scripts/bench_gpu.sh, from its command line to its report.
add_test(NAME "cuda: bench_gpu.sh on two emulated devices"
         COMMAND ${CMAKE_SOURCE_DIR}/test/cuda/bench_gpu_test.py $<TARGET_FILE:openmoe_emulated>)
set_tests_properties("cuda: bench_gpu.sh on two emulated devices" PROPERTIES TIMEOUT 300 LABELS cuda PROCESSORS 2)

# The real cuDNN, over a driver that stands before any real one.
if(OPENMOE_HAVE_CUDNN)
  add_library(fake_driver SHARED ${CMAKE_CURRENT_LIST_DIR}/fake_driver.cpp)
  set_target_properties(fake_driver PROPERTIES OUTPUT_NAME cuda SUFFIX .so.1 LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/fake_driver)
  add_executable(test_cudnn_engines ${CMAKE_CURRENT_LIST_DIR}/cudnn_engines_test.cpp)
  target_link_libraries(test_cudnn_engines PRIVATE openmoe_test_main openmoe_cuda CUDA::cudart)
  target_include_directories(test_cudnn_engines SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  add_dependencies(test_cudnn_engines fake_driver)
  openmoe_discover_tests(test_cudnn_engines cuda TIMEOUT 120 LABELS cuda SKIP_REGULAR_EXPRESSION "skipped: "
    ENVIRONMENT "LD_LIBRARY_PATH=${CMAKE_CURRENT_BINARY_DIR}/fake_driver:${CUDAToolkit_LIBRARY_DIR}:$ENV{LD_LIBRARY_PATH}")
endif()
