"""Measuring: commands, and the library behind them.

The files directly in here are commands. The folders read as a sentence: samples -> features -> metrics -> reports.
`speed` has the benchmark, `studies` one question each.
"""
