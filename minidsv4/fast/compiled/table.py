"""`COMPILED`: operations in loops that numba compiles, where these win; the rest as in `FAST`.

It can be named without numba; the first call of a compiled operation says what is missing. What the loops do not know
(16 bits, other devices than the CPU) goes the way of `FAST`.
"""

from minidsv4.fast import FAST
from minidsv4.fast.compiled.attention import attend
from minidsv4.fast.compiled.experts import experts, swiglu
from minidsv4.fast.compiled.rms_norm import rms_norm
from minidsv4.fast.compiled.streams import collapse, sinkhorn, write
from minidsv4.fast.compiled.top_entries import top_entries

COMPILED = FAST._replace(
    rms_norm=rms_norm,
    attend=attend,
    top_entries=top_entries,
    sinkhorn=sinkhorn,
    collapse=collapse,
    write=write,
    swiglu=swiglu,
    experts=experts,
)
