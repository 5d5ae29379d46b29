"""ImageNet-style class-conditional image generation; its embedded default is scikit-learn's digits."""
