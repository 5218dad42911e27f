"""The parts that several networks share, one idea a file.

Read `conv_norm` and `folding` (a convolution with its norm, and how norms fold into it), then `positions` and
`window_positions`, `checkpointing` and `squeeze_excitation`.
"""
