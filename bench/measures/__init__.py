"""The benchmarks: one subject a file, each with the peers and limits that it is to be read beside."""
