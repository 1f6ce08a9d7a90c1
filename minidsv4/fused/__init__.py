"""A decoding step compiled by numba: one token of one sequence on the CPU, as plain loops without torch in between."""
