"""Every figure of a set of images against a reference, from what one pass has gathered."""

from domains.imagenet.metrics.feature_network import figure_name
from domains.imagenet.metrics.feature_set import FeatureSet
from domains.imagenet.metrics.frechet import frechet_distance
from domains.imagenet.metrics.inception_score import inception_score
from domains.imagenet.metrics.kernel_distance import SUBSETS, kernel_distance
from domains.imagenet.metrics.precision_recall import ADM_NEIGHBOURS, precision_recall
from domains.imagenet.metrics.reference import Reference


def compare(
    generated: FeatureSet,
    reference: Reference,
    *,
    protocol: str = "adm",
    neighbours: int = ADM_NEIGHBOURS,
    subsets: int = SUBSETS,
) -> dict[str, float]:
    """Figures by name: FID, sFID, IS, KID, precision, recall in Inception, FD(network) and so on in another network.

    What network and reference do not have is left out. Better is lower for the distances, higher for the rest.

    Args:
        generated: the set to measure.
        reference: real images in the space of the same network.
        protocol: of the Inception score, see `inception_score`.
        neighbours: k of precision and recall.
        subsets: of KID.
    """
    figures = {"FD": frechet_distance(generated.moments.gaussian(), reference.pooled)}
    if generated.spatial is not None and reference.spatial is not None:
        figures["sFD"] = frechet_distance(generated.spatial.gaussian(), reference.spatial)
    if generated.logits is not None:
        figures["IS"] = inception_score(generated.logits, protocol)
    if reference.features is not None:
        figures["KD"] = kernel_distance(generated.pooled, reference.features, subsets=subsets)
        figures["precision"], figures["recall"] = precision_recall(
            generated.pooled, reference.features, neighbours=neighbours
        )
    return {figure_name(name, generated.network): value for name, value in figures.items()}
