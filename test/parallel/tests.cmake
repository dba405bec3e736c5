# Each executable runs whole on every number of ranks; the cases that need a certain shape take what the ranks allow.
openmoe_mpi_test(NAME communicator SOURCES parallel/communicator_test.cpp RANKS 1 2 3 4 6 LINK openmoe_parallel)
openmoe_mpi_test(NAME process_grid SOURCES parallel/process_grid_test.cpp RANKS 1 2 3 4 6 LINK openmoe_parallel)
openmoe_mpi_test(NAME expert_exchange SOURCES parallel/expert_exchange_test.cpp RANKS 1 2 3 4 6 LINK openmoe_parallel)
openmoe_mpi_test(NAME tensor_group SOURCES parallel/tensor_group_test.cpp RANKS 1 2 3 4 6 LINK openmoe_parallel)
openmoe_mpi_test(NAME gradient_reducer SOURCES parallel/gradient_reducer_test.cpp RANKS 1 2 3 4 6 LINK openmoe_parallel)
openmoe_mpi_test(NAME checkpoint SOURCES parallel/checkpoint_test.cpp RANKS 1 2 4 6 LINK openmoe_apps)
