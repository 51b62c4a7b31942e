"""History in parallel: partitions, the lanes that write them, the executor that drives the lanes, and the hand-over."""
