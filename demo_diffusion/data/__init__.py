"""Images, and the latents that stand for them.

Read `images` (a dataset by name) and `preparation` (crop and colour) first, then `autoencoder` (images <-> latents),
`latent_shards` (the files of a latent cache) and `latents` (a finished cache). `raw_images` serves classifiers,
`objects` detectors, with `coco` (JSON files) and `scenes` (made of digits).
Nothing is imported here: `datasets` and torchvision would come along.
"""
