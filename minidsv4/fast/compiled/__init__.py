"""Loops compiled by numba (optional): a decoding step of one sequence, and the indexer's choice of entries."""
