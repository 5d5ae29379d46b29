import pytest
import torch
from torch import nn

from drifting.training.fingerprint import Fingerprint


def test_the_same_weights_are_accepted_and_others_refused():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    saved = Fingerprint(net).state_dict()
    Fingerprint(net).load_state_dict(saved)
    with torch.no_grad():
        net[0].weight[0, 0] += 1e-6
    with pytest.raises(ValueError, match="other weights than when this run began"):
        Fingerprint(net).load_state_dict(saved)


def test_a_module_without_weights_has_one_too():
    Fingerprint(nn.Flatten()).load_state_dict(Fingerprint(nn.Flatten()).state_dict())
