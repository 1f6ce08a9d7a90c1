"""SwiGLU of some tokens in plain loops that numba compiles, with its gradient; one pass over gates and ups.

T tokens, F expert width. Ups begin at column `up_first` of their array: beside the gates, or in an array of their own.
"""

from minidsv4.fast.compiled.jit import compiled
from minidsv4.fast.compiled.numbers import sigmoid


@compiled
def fill(gate_TF, up_TF, weight_T, out_TF, up_first, limit):
    """Fill `out_TF` with weight * silu(min(gate, limit)) * clip(up, -limit, limit)."""
    for t in range(len(out_TF)):
        for f in range(out_TF.shape[1]):
            gate, up = gate_TF[t, f], up_TF[t, up_first + f]
            gate = limit if gate > limit else gate
            up = limit if up > limit else up
            up = -limit if up < -limit else up
            out_TF[t, f] = gate * sigmoid(gate) * up * weight_T[t]


@compiled
def fill_back(gate_TF, up_TF, weight_T, pull_TF, out_TF, d_gate_TF, d_up_TF, d_weight_T, up_first, limit):
    """`fill` once more, and the gradients that `pull` on it gives; beyond the clamps they are 0.

    Each loop writes one array: of more, LLVM does not look whether they overlap, and goes number by number.
    """
    zero, one = out_TF.dtype.type(0), out_TF.dtype.type(1)
    for t in range(len(out_TF)):
        along, weight = zero, weight_T[t]
        for f in range(out_TF.shape[1]):
            gate = gate_TF[t, f]
            out_TF[t, f] = sigmoid(limit if gate > limit else gate)
        for f in range(out_TF.shape[1]):
            gate, up = gate_TF[t, f], up_TF[t, up_first + f]
            gate = limit if gate > limit else gate
            d_up = pull_TF[t, f] * weight * (gate * out_TF[t, f])
            d_up = zero if up > limit else d_up
            d_up_TF[t, up_first + f] = zero if up < -limit else d_up
        for f in range(out_TF.shape[1]):
            gate, up, share = gate_TF[t, f], up_TF[t, up_first + f], out_TF[t, f]
            up = limit if up > limit else up
            up = -limit if up < -limit else up
            d_gate = pull_TF[t, f] * weight * up * share * (one + gate * (one - share))
            d_gate_TF[t, f] = zero if gate > limit else d_gate
        for f in range(out_TF.shape[1]):
            gate, up = gate_TF[t, f], up_TF[t, up_first + f]
            gate = limit if gate > limit else gate
            up = limit if up > limit else up
            up = -limit if up < -limit else up
            inner = gate * out_TF[t, f] * up
            along += pull_TF[t, f] * inner
            out_TF[t, f] = inner * weight
        d_weight_T[t] = along
