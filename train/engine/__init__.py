"""What every training shares.

Read `trainer` first (its `run` is the loop), then what it calls in turn: `batch_order`, `accelerator`, `finite_steps`,
`moving_averages`, `checkpoints`, `run_folder`, `failures`. `launch` runs a trainer as a command; `config` holds the
shared options. A new family of tasks subclasses `Trainer` and changes nothing here.
"""
