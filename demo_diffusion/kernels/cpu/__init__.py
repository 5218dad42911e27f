"""Operators of the block for a CPU.

Read `window_order` (an order in which windows are views) and `attention`, then `depthwise`, `linear` and `malloc`.
"""
