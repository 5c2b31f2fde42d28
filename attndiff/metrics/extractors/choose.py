"""Which network measures: the standard one, one from the Hub, or one trained here."""

import torch

from attndiff.alpha import has_alpha
from attndiff.data.columns import CAPTION, LABEL
from attndiff.data.subset import Subset
from attndiff.errors import UserError
from attndiff.metrics.extractors import inception, trained
from attndiff.metrics.extractors.base import Extractor, check_enough
from attndiff.metrics.extractors.named import say_the_same
from attndiff.metrics.extractors.pretext import Material
from attndiff.metrics.grounds import on_turns, on_white
from attndiff.paths import expand

# As many training images beside those of the floor make a classifier that has not seen the floor's.
ENOUGH_TO_TRAIN_ON = 500


def choose_extractor(
    name: str | None, test: Subset, others: Subset, rest: Subset, seed: int, device: str, argument: str = "--n, --data"
) -> Extractor:
    """Open or train an extractor.

    A classifier is trained on ``rest`` if that is large enough, so that the floor's images are as new to it as the
    test images are; else on ``others`` and ``rest``. It learns what is said of the images, and ``"unnamed"`` what
    they show by themselves.

    Args:
        name: ``"inception"``, ``"classifier"``, ``"unnamed"``, a folder or Hub id; None: Inception where it is at hand
            and the images are RGB, else the classifier.
        test: Images to compare samples with.
        others: As many training images, those of the floor.
        rest: All other training images.
        seed: Of the classifier.
        device: Where to compute.
        argument: The settings that decide how many images there are, as a message names them.

    Raises:
        UserError: If there are too few images, or the network cannot be had; `NothingLearned` if a trained one is
            near chance.
    """
    n = len(test)
    if name is None:
        data = test.describe()
        rgb = len(data["channels"]) - has_alpha(data) == 3
        enough = n > inception.FEATURES
        name = "inception" if rgb and enough and inception.inception_at_hand() else "classifier"
    if name == "inception":
        check_enough(n, inception.FEATURES, name, argument)
        return inception.inception_extractor(device)
    if name in ("classifier", "unnamed"):
        check_enough(n, trained.FEATURES, name, argument)
        return train_extractor(test, others, rest, seed, device, named=name == "classifier")
    if "/" not in name and not expand(name).is_dir():
        raise UserError(
            f"--extractor {name} is unknown; give inception, classifier, unnamed, or the folder or Hub id of a vision "
            "model."
        )
    from attndiff.metrics.extractors.hub_vision import hub_extractor  # transformers takes seconds to import

    extractor = hub_extractor(str(expand(name)), device)
    check_enough(n, extractor(on_white(test.describe())(test.tensor()[:1])).shape[1], name, argument)
    return extractor


def train_extractor(
    test: Subset, others: Subset, rest: Subset, seed: int, device: str, named: bool = True
) -> Extractor:
    """The classifier, of what can be learned; arguments as of `choose_extractor`."""
    parts = [rest] if learns_from_rest(rest) else [others, rest]
    parts = [Subset(part, range(min(len(part), trained.AT_MOST))) for part in parts if len(part)]
    return trained.trained_extractor(material_of(parts), material_of([test]), seed, device, named)


def learns_from_rest(rest: Subset) -> bool:
    """Whether a classifier never sees the images of the floor."""
    return len(rest) >= ENOUGH_TO_TRAIN_ON


def material_of(parts: list[Subset]) -> Material:
    """Sets as one, with captions, classes and other columns as texts; alpha on either ground by turns."""
    images = on_turns(torch.cat([part.tensor(trained.SIDE) for part in parts]), parts[0].describe())
    captions = [row.get(CAPTION.name, []) for part in parts for row in part]
    columns = {}
    if all(LABEL in part.columns for part in parts):
        columns[trained.CLASSES] = [str(row[LABEL.name]) for part in parts for row in part]
    said = [part.texts() for part in parts]
    for name in said[0]:
        values = [value for texts in said for value in texts[name]]
        if not any(say_the_same(values, other) for other in columns.values()):
            columns[name] = values
    return Material(images, captions if all(map(any, captions)) else None, columns)
