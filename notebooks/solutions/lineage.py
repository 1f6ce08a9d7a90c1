"""Solutions of the exercises in lineage.ipynb."""


def bytes_kept(n, M, K, Z, W):
    """Two bytes for each number of the entries, their keys and the window."""
    entries = n // M
    in_window = min(n, W)
    numbers = entries * (K + Z) + in_window * K
    return 2 * numbers
