"""The conformance kit: what a loader passes to call itself exactly-once.

conformance   Destination, Conformance: the crash matrix and the other proofs, as plain functions
scenarios     what the chain does while processes are killed
oracle        which rows a branch of the chain has, and how to compare
process       the child process as the parent sees it; `child` is the process itself
suite         ExactlyOnceTests, the kit as a pytest class
local_amp     a fixture: a started local Amp over a simulated chain
"""
