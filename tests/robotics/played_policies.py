"""Policies that are simple enough to know what a rollout of them must give."""

import torch


class NoisyChase:
    """Sends the pusher of PushT near the T's first keypoint, by noise of the episode's own generator."""

    def __init__(self, steps=8, noise=40.0):
        self.steps, self.noise = steps, noise
        self.batches = []

    def act(self, observation, generator):
        self.batches.append(len(generator))
        noise = torch.stack([torch.randn(self.steps, 2, generator=each) for each in generator])
        return observation["keypoint"][:, -1, None, :2] + self.noise * noise


class Recorded(NoisyChase):
    """Remembers what it was shown and what it did."""

    def __init__(self, steps=8):
        super().__init__(steps)
        self.shown, self.done = [], []

    def act(self, observation, generator):
        actions = super().act(observation, generator)
        self.shown.append({key: value.clone() for key, value in observation.items()})
        self.done.append(actions)
        return actions
