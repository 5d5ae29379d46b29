"""Training infrastructure shared by every domain: config, optimiser, EMA, checkpoints, logs."""
