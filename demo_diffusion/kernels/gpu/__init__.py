"""Operators of the block for a GPU, in Triton.

Read `available` (when they may be called), then `attention` and `depthwise` (host) with their `…_kernels` (device).
"""
