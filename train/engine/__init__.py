"""What every training shares.

Read `trainer` (the loop) first, then what it calls in turn: `batch_order`, `accelerator`, `finite_steps`,
`moving_averages`, `checkpoints`, `run_folder`. `launch` runs a trainer as a command, `config` has its options.
"""
