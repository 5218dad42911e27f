"""How fast networks are.

Read `workloads` (what is timed), `timing` (clocks and turns), `roofline` (what the machine could do), then
`measurements`, `operator_profile`, `report`.
"""
