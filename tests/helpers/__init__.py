"What several test modules need: learners, the list of all methods, servers of runs, pairs of processes."
