"""The Inception network that FID and KID are defined on, as torch-fidelity ports it from TensorFlow.

Its weights come as a pickle. They are read with ``weights_only=True``, which builds tensors and nothing else, after
the file's SHA-256 was found to be that of the published one.
"""

import hashlib
import io
import os
import shutil
import urllib.request
from pathlib import Path

import torch

from attndiff.errors import UserError
from attndiff.metrics.extractors.base import Extractor, rgb_levels

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FEATURES = 2048
SECONDS = 30  # without an answer until a download is given up


def weights_file() -> Path:
    """Where the weights lie: in torch's own cache, where torch-fidelity keeps them, too."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE


def inception_at_hand() -> bool:
    """Whether library and weights are there without a download."""
    if not weights_file().is_file():
        return False
    try:
        import torch_fidelity  # noqa: F401
    except Exception:  # a torchvision made for another torch fails with RuntimeError
        return False
    return True


def inception_extractor(device: torch.device | str = "cpu") -> Extractor:
    """The standard network: 8-bit RGB, TensorFlow's bilinear resizing to 299 px, 2048 features of the last pooling.

    Args:
        device: Where features are computed.

    Raises:
        UserError: If library or weights are missing and cannot be had, or the file is not the published one.
    """
    state = read_weights()
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except Exception as error:  # a torchvision made for another torch fails with RuntimeError
        raise UserError(
            f"--extractor inception needs torch-fidelity with a torchvision that fits this torch ({error}); install "
            "them with pip install 'attndiff[eval]'."
        ) from None
    # The library unpickles what it is given; it is given these tensors, never the file.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    network = FeatureExtractorInceptionV3("inception", [str(FEATURES)], feature_extractor_weights_path=buffer)
    network = network.to(device)

    def features(images: torch.Tensor) -> torch.Tensor:
        return network(rgb_levels(images, "inception").to(device))[0].cpu()

    return Extractor("inception", features, standard=True)


def read_weights() -> dict[str, torch.Tensor]:
    """The weights by name; downloaded first if need be.

    Raises:
        UserError: If they are not there and cannot be downloaded, or are not the published ones.
    """
    file = weights_file()
    if not file.is_file():
        _download(file)
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != SHA256:
        raise UserError(
            f"{file} is not the Inception network that FID is defined on (its SHA-256 begins with {digest[:8]}, not "
            f"{SHA256[:8]}); delete it, or put {URL} there."
        )
    return torch.load(file, map_location="cpu", weights_only=True)


def _download(file: Path) -> None:
    """Fetch the weights into their place, whole or not at all."""
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL, timeout=SECONDS) as source, open(partial, "wb") as target:
            shutil.copyfileobj(source, target)
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"--extractor inception needs the weights {file}, and they could not be downloaded ({error}); put the file "
            f"{URL} there, or use --extractor classifier."
        ) from None
