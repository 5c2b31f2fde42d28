"""Which network measures: the standard one, one from the Hub, or one trained here."""

from pathlib import Path

import torch

from attndiff.data.subset import Subset
from attndiff.errors import UserError
from attndiff.metrics.extractors import inception, trained
from attndiff.metrics.extractors.base import Extractor, check_enough

# As many training images beside those of the floor make a classifier that has not seen the floor's.
ENOUGH_TO_TRAIN_ON = 500


def choose_extractor(
    name: str | None, test: Subset, others: Subset, rest: Subset, seed: int, device: str, argument: str = "--n, --data"
) -> Extractor:
    """Open or train an extractor.

    A classifier is trained on ``rest`` if that is large enough, so that the floor's images are as new to it as the
    test images are; else on ``others`` and ``rest``.

    Args:
        name: ``"inception"``, ``"classifier"``, a folder or Hub id; None: Inception where it is at hand and the images
            are RGB, else the classifier.
        test: Images to compare samples with.
        others: As many training images, those of the floor.
        rest: All other training images.
        seed: Of the classifier.
        device: Where to compute.
        argument: The settings that decide how many images there are, as a message names them.

    Raises:
        UserError: If there are too few images, or the network cannot be had.
    """
    n = len(test)
    if name is None:
        rgb = test.pixels(0).shape[0] == 3
        enough = n > inception.FEATURES
        name = "inception" if rgb and enough and inception.inception_at_hand() else "classifier"
    if name == "inception":
        check_enough(n, inception.FEATURES, name, argument)
        return inception.inception_extractor(device)
    if name == "classifier":
        check_enough(n, trained.FEATURES, name, argument)
        return _train(test, others, rest, seed, device)
    if "/" not in name and not Path(name).is_dir():
        raise UserError(
            f"--extractor {name} is unknown; give inception, classifier, or the folder or Hub id of a vision model."
        )
    from attndiff.metrics.extractors.hub_vision import hub_extractor  # transformers takes seconds to import

    extractor = hub_extractor(name, device)
    check_enough(n, extractor(test.tensor()[:1]).shape[1], name, argument)
    return extractor


def _train(test: Subset, others: Subset, rest: Subset, seed: int, device: str) -> Extractor:
    """The classifier, of classes where the images have some."""
    parts = [rest] if len(rest) >= ENOUGH_TO_TRAIN_ON else [others, rest]
    parts = [Subset(part, range(min(len(part), trained.AT_MOST))) for part in parts if len(part)]
    images, held_out = torch.cat([part.tensor(trained.SIDE) for part in parts]), test.tensor(trained.SIDE)
    labels = torch.cat([part.labels() for part in parts]) if parts[0].label(0) is not None else None
    if labels is None or len(labels.unique()) < 2:
        return trained.trained_extractor(images, None, held_out, None, "quarter-turns", seed, device)
    return trained.trained_extractor(images, labels, held_out, test.labels(), "classes", seed, device)
