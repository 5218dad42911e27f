"""Making a latent cache: `config` has its options, `cache` encodes."""
