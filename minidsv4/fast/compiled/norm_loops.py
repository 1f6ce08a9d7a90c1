"""RMSNorm in plain loops that numba compiles, forwards and backwards.

T tokens (or heads of tokens), D width, Z = 1.
"""

from minidsv4.fast.compiled.jit import compiled


@compiled
def norm_share(x_TD, scale_T, out_TD, weight_D, eps):
    """Fill `out_TD` with the normed rows, and `scale_T` with what each was multiplied by before its weight."""
    n_rows, width = x_TD.shape
    number = x_TD.dtype.type
    for t in range(n_rows):
        total = number(0)
        for d in range(width):
            total += x_TD[t, d] * x_TD[t, d]
        scale = number((total / number(width) + eps) ** -0.5)
        for d in range(width):
            out_TD[t, d] = x_TD[t, d] * scale * weight_D[d]
        scale_T[t] = scale


@compiled
def norm_back_share(grad_TD, kept_TD, scale_T, times_T, d_x_TD, d_weight_ZD, weight_D, inverse_D):
    """Fill `d_x_TD`, and add to the gradient of the weight; output = normed * weight, normed = x * scale.

    normed[t, d] = kept[t, d] * times[t] * inverse[d]: x is kept, with its scale and 1; or the output, with 1 and
    1 / weight.
    """
    n_rows, width = kept_TD.shape
    number = kept_TD.dtype.type
    for t in range(n_rows):
        along = number(0)
        for d in range(width):
            normed = kept_TD[t, d] * (times_T[t] * inverse_D[d])
            pulled = grad_TD[t, d] * normed
            d_weight_ZD[0, d] += pulled
            along += pulled * weight_D[d]
        mean = along / number(width)
        for d in range(width):
            normed = kept_TD[t, d] * (times_T[t] * inverse_D[d])
            d_x_TD[t, d] = (grad_TD[t, d] * weight_D[d] - normed * mean) * scale_T[t]
