# Tests of whole commands. The sample corpus is tokenised once for all of them.
add_test(NAME "apps: prepare the sample corpus"
         COMMAND ${CMAKE_SOURCE_DIR}/test/apps/prepare_sample.sh ${CMAKE_BINARY_DIR}/openmoe ${OPENMOE_TEST_SHARDS})
set_tests_properties("apps: prepare the sample corpus" PROPERTIES FIXTURES_SETUP sample_shards TIMEOUT ${OPENMOE_TEST_TIMEOUT} LABELS unit)

file(GLOB sources CONFIGURE_DEPENDS apps/*_test.cpp)
add_executable(test_apps support/plain_main.cpp ${sources})
target_link_libraries(test_apps PRIVATE openmoe_test_support openmoe_apps openmoe_device)
add_dependencies(test_apps openmoe)
# Stands between a job and its MPI library to damage what ranks receive. A sanitizer's library must come first in a process, so it
# is left out there.
if(NOT OPENMOE_SANITIZE)
  add_library(damaged_mpi SHARED support/damaged_mpi.cpp)
  target_link_libraries(damaged_mpi PRIVATE MPI::MPI_C)
  add_dependencies(test_apps damaged_mpi)
  target_compile_definitions(test_apps PRIVATE OPENMOE_DAMAGED_MPI="$<TARGET_FILE:damaged_mpi>")
endif()
openmoe_discover_tests(test_apps apps TIMEOUT ${OPENMOE_TEST_TIMEOUT} LABELS "apps\;mpi" FIXTURES_REQUIRED sample_shards PROCESSORS 2)

openmoe_golden_tests(CASES 1:1:1:6 2:1:1:6 2:2:1:6 2:1:2:6 4:1:1:5 4:2:1:5 4:2:2:6 4:1:2:6 8:2:2:5 FOLDER ${CMAKE_SOURCE_DIR}/test/golden
                     WHAT "all files" BINARY openmoe)
openmoe_golden_tests(CASES 1:1:1:3 2:2:1:3 2:1:2:3 4:2:2:3 FOLDER ${CMAKE_SOURCE_DIR}/test/golden/bf16 WHAT "bf16 files" BINARY openmoe)

add_test(NAME "mpi: two hosts without shared memory"
         COMMAND ${CMAKE_SOURCE_DIR}/test/two_hosts_test.sh ${CMAKE_BINARY_DIR}/openmoe ${OPENMOE_TEST_SHARDS} ${CMAKE_SOURCE_DIR})
set_tests_properties("mpi: two hosts without shared memory" PROPERTIES TIMEOUT ${OPENMOE_TEST_TIMEOUT} LABELS "mpi" PROCESSORS 2
                     SKIP_RETURN_CODE 77 FIXTURES_REQUIRED sample_shards)

# Conversion against the real libraries, which live in Python; what is not installed is skipped by the test and said.
add_executable(logits_tool apps/logits_tool.cpp)
target_link_libraries(logits_tool PRIVATE openmoe_apps openmoe_device)
find_program(OPENMOE_PYTHON NAMES python3 PATHS ${CMAKE_SOURCE_DIR}/build/python/bin NO_DEFAULT_PATH)
find_program(OPENMOE_PYTHON NAMES python3 PATHS /usr/bin NO_DEFAULT_PATH)
find_program(OPENMOE_PYTHON NAMES python3)
if(OPENMOE_PYTHON)
  add_test(NAME "python: conversion against torch and safetensors"
           COMMAND ${OPENMOE_PYTHON} ${CMAKE_SOURCE_DIR}/test/python/convert_test.py ${CMAKE_BINARY_DIR}/openmoe
                   $<TARGET_FILE:logits_tool>)
  set_tests_properties("python: conversion against torch and safetensors" PROPERTIES TIMEOUT ${OPENMOE_TEST_TIMEOUT} LABELS "python"
                       SKIP_RETURN_CODE 77 ENVIRONMENT "OMP_NUM_THREADS=1")
  add_test(NAME "python: the layout of shards read with h5py"
           COMMAND ${OPENMOE_PYTHON} ${CMAKE_SOURCE_DIR}/test/python/shard_layout_test.py ${CMAKE_BINARY_DIR}/openmoe)
  set_tests_properties("python: the layout of shards read with h5py" PROPERTIES TIMEOUT ${OPENMOE_TEST_TIMEOUT} LABELS "python"
                       SKIP_RETURN_CODE 77 ENVIRONMENT "OMP_NUM_THREADS=1")
  add_test(NAME "python: the README's way from the released weights"
           COMMAND ${OPENMOE_PYTHON} ${CMAKE_SOURCE_DIR}/test/python/walkthrough_test.py ${CMAKE_BINARY_DIR}/openmoe
                   ${OPENMOE_TEST_SHARDS} ${CMAKE_SOURCE_DIR})
  set_tests_properties("python: the README's way from the released weights" PROPERTIES TIMEOUT ${OPENMOE_TEST_TIMEOUT} LABELS "python"
                       FIXTURES_REQUIRED sample_shards)
  add_test(NAME "python: an exported folder in transformers"
           COMMAND ${OPENMOE_PYTHON} ${CMAKE_SOURCE_DIR}/test/python/transformers_test.py ${CMAKE_BINARY_DIR}/openmoe
                   ${OPENMOE_TEST_SHARDS} ${CMAKE_SOURCE_DIR})
  set_tests_properties("python: an exported folder in transformers" PROPERTIES TIMEOUT ${OPENMOE_TEST_TIMEOUT} LABELS "python" SKIP_RETURN_CODE 77
                       FIXTURES_REQUIRED sample_shards)
  foreach(case Generate Evaluate Start Serve)
    add_test(NAME "commands: ${case}" COMMAND ${OPENMOE_PYTHON} ${CMAKE_SOURCE_DIR}/test/python/commands_test.py
                                              ${CMAKE_BINARY_DIR}/openmoe ${OPENMOE_TEST_SHARDS} ${CMAKE_SOURCE_DIR} ${case})
    set_tests_properties("commands: ${case}" PROPERTIES TIMEOUT ${OPENMOE_TEST_TIMEOUT} LABELS "apps;python" FIXTURES_REQUIRED sample_shards)
  endforeach()
  foreach(case tensorboard log)
    set(name "python: live routing, ${case}")
    add_test(NAME ${name} COMMAND ${OPENMOE_PYTHON} ${CMAKE_SOURCE_DIR}/test/python/routing_test.py ${CMAKE_BINARY_DIR}/openmoe
                                  ${OPENMOE_TEST_SHARDS} ${CMAKE_SOURCE_DIR} ${case})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${OPENMOE_TEST_TIMEOUT} LABELS "python" SKIP_RETURN_CODE 77 FIXTURES_REQUIRED sample_shards
                         ENVIRONMENT "OMP_NUM_THREADS=1")
  endforeach()
  foreach(case bleu client harness)
    set(name "python: ${case}")
    add_test(NAME ${name} COMMAND ${OPENMOE_PYTHON} ${CMAKE_SOURCE_DIR}/test/python/use_test.py ${CMAKE_BINARY_DIR}/openmoe
                                  ${OPENMOE_TEST_SHARDS} ${CMAKE_SOURCE_DIR} ${case})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${OPENMOE_TEST_TIMEOUT} LABELS "python" SKIP_RETURN_CODE 77 FIXTURES_REQUIRED sample_shards)
  endforeach()
endif()

# The batch files under a real Slurm on this machine, where its packages are installed; skipped with a reason elsewhere.
add_test(NAME "slurm: a job leaves, is requeued and ends" COMMAND ${CMAKE_SOURCE_DIR}/test/slurm_test.sh ${CMAKE_BINARY_DIR}/openmoe
                                                                  ${OPENMOE_TEST_SHARDS})
set_tests_properties("slurm: a job leaves, is requeued and ends" PROPERTIES TIMEOUT ${OPENMOE_TEST_TIMEOUT} LABELS "apps" SKIP_RETURN_CODE 77
                     FIXTURES_REQUIRED sample_shards PROCESSORS 2)
