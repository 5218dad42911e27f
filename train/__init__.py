"""Training: commands, and one folder a family of tasks with the rooms config, data, trainer and model_card.

The files directly in here are commands; read one of them, then `diffusion`, `classification` or `detection`, then
`engine`.
"""
