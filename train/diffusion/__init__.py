"""Training D-EMO, DiT and SiT.

Read `config`, `data`, `trainer` (what is learnt), `build` (objective, network, pipeline), then what a run leaves:
`sample_grid`, `scoring`, `official_losses`, `model_card`.
"""
