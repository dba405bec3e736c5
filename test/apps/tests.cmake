# Tests of whole commands. The sample corpus is tokenised once for all of them.
set(OPENMOE_SAMPLE_SHARDS ${CMAKE_BINARY_DIR}/test_shards)
add_test(NAME "apps: prepare the sample corpus"
         COMMAND ${CMAKE_SOURCE_DIR}/test/apps/prepare_sample.sh ${CMAKE_BINARY_DIR}/openmoe ${OPENMOE_SAMPLE_SHARDS})
set_tests_properties("apps: prepare the sample corpus" PROPERTIES FIXTURES_SETUP sample_shards TIMEOUT 120 LABELS unit)

file(GLOB sources CONFIGURE_DEPENDS apps/*_test.cpp)
add_executable(test_apps ${sources})
target_link_libraries(test_apps PRIVATE openmoe_test_support openmoe_apps openmoe_device)
add_dependencies(test_apps openmoe)
catch_discover_tests(test_apps TEST_PREFIX "apps: "
                     PROPERTIES TIMEOUT 300 LABELS "apps;mpi" FIXTURES_REQUIRED sample_shards PROCESSORS 2
                     ENVIRONMENT "${OPENMOE_TEST_ENVIRONMENT};OPENMOE_SAMPLE_SHARDS=${OPENMOE_SAMPLE_SHARDS}")

foreach(ranks 1 2 4)
  foreach(ep 1 2)
    if(ep GREATER ranks)
      continue()
    endif()
    set(name "golden: all files on ${ranks} ranks, ep ${ep}")
    add_test(NAME ${name} COMMAND ${OPENMOE_MPIRUN} -np ${ranks} ${CMAKE_BINARY_DIR}/openmoe selftest
                                  --golden ${CMAKE_SOURCE_DIR}/test/golden --ep ${ep})
    set_tests_properties(${name} PROPERTIES TIMEOUT 120 LABELS "golden;mpi" PROCESSORS 2
                         ENVIRONMENT "OMP_NUM_THREADS=1")
  endforeach()
endforeach()
