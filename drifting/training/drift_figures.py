"""What the drifting loss tells of each feature, as scalars for the metrics log."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from drifting.loss import DriftTerms


def temperature_names(temperatures: Sequence[object]) -> list[str]:
    """What figures and messages call the temperatures: the number, or `tau<place>` for a learned one."""
    return [f"{tau:g}" if isinstance(tau, int | float) else f"tau{place}" for place, tau in enumerate(temperatures)]


def drift_rms_by_feature(terms: Mapping[str, DriftTerms], temperatures: Sequence[object]) -> dict[str, Tensor]:
    """RMS of the drift before normalisation, {"drift_rms/<feature>/<tau>": []}, detached; nothing is fetched.

    They fall as the generator learns, at the largest temperature first of all; a feature whose figure stays is one that
    the generator does not match.

    Raises:
        ValueError: not as many temperatures as the terms have.
    """
    names = temperature_names(temperatures)
    figures: dict[str, Tensor] = {}
    for feature, term in terms.items():
        if term.drift_rms.shape != (len(names),):
            raise ValueError(
                f"temperatures must be those of the loss, {term.drift_rms.shape[0]} for feature {feature}, got {names}"
            )
        figures |= {
            f"drift_rms/{feature}/{name}": rms for name, rms in zip(names, term.drift_rms.unbind(), strict=True)
        }
    return figures
