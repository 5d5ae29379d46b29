"""Figures of sets of images in the feature space of a network: FID and its relatives.

A network (`FeatureNetwork`) turns images into features, one streamed pass (`FeatureSet`) gathers them, and every figure
compares what a pass gathered with a `Reference`. Figures are named after their space: only the published Inception
network measures an FID; in any other network it is an FD(network).
"""
