# Each executable runs whole on every number of ranks; the cases that need a certain shape take what the ranks allow.
openmoe_mpi_test(NAME communicator SOURCES parallel/communicator_test.cpp RANKS 1 2 3 4 6 LINK openmoe_parallel)
openmoe_mpi_test(NAME process_grid SOURCES parallel/process_grid_test.cpp RANKS 1 2 3 4 6 LINK openmoe_parallel)
openmoe_mpi_test(NAME expert_exchange SOURCES parallel/expert_exchange_test.cpp RANKS 1 2 3 4 6 LINK openmoe_parallel)
openmoe_mpi_test(NAME tensor_group SOURCES parallel/tensor_group_test.cpp RANKS 1 2 3 4 6 LINK openmoe_parallel)
openmoe_mpi_test(NAME gradient_reducer SOURCES parallel/gradient_reducer_test.cpp RANKS 1 2 3 4 6 LINK openmoe_parallel)
openmoe_mpi_test(NAME checkpoint SOURCES parallel/checkpoint_test.cpp RANKS 1 2 4 6 LINK openmoe_apps)
openmoe_mpi_test(NAME plan SOURCES parallel/plan_test.cpp RANKS 1 2 4 8 LINK openmoe_apps openmoe_device)
openmoe_mpi_test(NAME model_options SOURCES parallel/model_options_test.cpp RANKS 1 2 4 LINK openmoe_apps openmoe_device)
openmoe_mpi_test(NAME last_words SOURCES parallel/last_words_test.cpp RANKS 1 LINK openmoe_parallel)
openmoe_mpi_test(NAME stuck_ranks SOURCES parallel/stuck_ranks_test.cpp RANKS 1 LINK openmoe_parallel)

# The watchdog ends such a job with the name of the rank that others wait for.
add_executable(stuck_tool parallel/stuck_tool.cpp)
target_link_libraries(stuck_tool PRIVATE openmoe_parallel)
foreach(group world expert "late comers")
  set(name "watchdog: a rank sleeps, others wait in group ${group}")
  add_test(NAME ${name} COMMAND ${OPENMOE_MPIRUN} -np 3 $<TARGET_FILE:stuck_tool> ${group})
  set_tests_properties(${name} PROPERTIES TIMEOUT 60 LABELS mpi PROCESSORS 2 FAIL_REGULAR_EXPRESSION "Sanitizer" PASS_REGULAR_EXPRESSION
    "the job is stuck: rank 2 .dp 0, ep 2, tp 0., step 12, reading the batch: no progress for [0-9]+ s outside collectives.*waiting: ranks 0, 1, in barrier, call [0-9]+ of group ${group}")
endforeach()
