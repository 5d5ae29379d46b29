"""The default loss's elementwise steps in C: fused passes where PyTorch on the CPU would make a dozen."""
