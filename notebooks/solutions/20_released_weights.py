"""Solutions of the exercises in 20_released_weights.ipynb."""

import json


def opened(packed, scales):
    """The numbers of a row of FP4: the low half of a byte first, 32 share a scale."""
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    values += [-value for value in values]
    row = []
    for byte in packed:
        for code in (byte % 16, byte // 16):
            row.append(values[code] * 2.0 ** (scales[len(row) // 32] - 127))
    return row


def per_token(tensors, n_active, n_experts):
    """Bytes that one token touches, the MTP block left out."""
    total = 0
    for name, n_rows, n_bytes in tensors:
        if ".experts." in name:
            total += n_bytes * n_active / n_experts
        elif name == "embed.weight" or name.endswith("tid2eid"):
            total += n_bytes / n_rows
        elif not name.startswith("mtp."):
            total += n_bytes
    return total


def listed(content):
    """The header's entries, by where their bytes begin."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    found = []
    for name, told in sorted(
        header.items(), key=lambda item: item[1]["data_offsets"][0]
    ):
        first, stop = told["data_offsets"]
        found.append((name, told["dtype"], stop - first))
    return found
