"""Training in the latent space of a frozen autoencoder: every image is encoded once and its latents are kept.

What is kept is the mean of the posterior, scaled as the pipeline undoes it. The deviations that sampling from the
posterior would need double the cache, and those of the usual autoencoders are a small part of the latents' own spread.

Shapes: B images, C channels and h, w sides of the latents, V views: the image, and the mirrored image if flips are on.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from attndiff.data.columns import IMAGE
from attndiff.data.geometry import Shape
from attndiff.data.image_set import CACHE_BYTES, ImageSet
from attndiff.data.rows import Row, Rows
from attndiff.errors import UserError
from attndiff.progress import progress

FOLDER = "latents"  # in a run's folder
PARTIAL = ".partial"
FORMAT_VERSION = 1
# Files are the unit in which processes share the work and in which damage is repaired.
FILE_BYTES = 1 << 24
# Pixels encoded at once: the widest layers of the usual autoencoders hold half a gibibyte for as many.
BATCH_PIXELS = 1 << 20


# The autoencoder


def open_vae(name: str) -> AutoencoderKL:
    """A frozen autoencoder in float32 (in half precision some overflow).

    Args:
        name: Folder of a diffusers ``AutoencoderKL`` or of a pipeline that has one as its ``vae``, or the Hub id of
            either; safetensors only.

    Raises:
        UserError: If there is none, it is of another class, or something in it is missing or damaged.
    """
    folder = Path(name)
    if not folder.is_dir() and (folder.is_absolute() or name.count("/") != 1):
        raise UserError(
            f"model.vae {name}: no such folder; name that of an AutoencoderKL, or a Hub repository user/name."
        )
    config, subfolder = _find_vae(name)
    if config.get("_class_name") != "AutoencoderKL":
        raise UserError(f"model.vae {name} holds a {config.get('_class_name')}, not an AutoencoderKL; name one.")
    settings = {"subfolder": subfolder, "use_safetensors": True, "output_loading_info": True}
    try:
        vae, loaded = AutoencoderKL.from_pretrained(name, **settings)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.vae {name} could not be opened: {_one_line(error)}") from None
    if loaded["missing_keys"]:
        raise UserError(f"model.vae {name} is incomplete: its weights lack {loaded['missing_keys'][0]}; copy it again.")
    return freeze(vae)


def _find_vae(name: str) -> tuple[dict, str | None]:
    """Config of an autoencoder, and the subfolder that it lies in."""
    places = [None, "vae"]
    if Path(name).is_dir():
        places = ["vae" if (Path(name) / "vae").is_dir() else None]
    for subfolder in places:
        try:
            return AutoencoderKL.load_config(name, subfolder=subfolder), subfolder
        except OSError as error:
            problem = error
    raise UserError(f"model.vae {name} holds no AutoencoderKL, name one that does: {_one_line(problem)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def freeze(network: ModelMixin) -> ModelMixin:
    """A network without gradients, on this process's device."""
    network.register_to_config(_name_or_path="")  # where it was opened from does not belong into the exported folder
    return network.to(PartialState().device).eval().requires_grad_(False)


def check_channels(vae: AutoencoderKL, images: ImageSet) -> None:
    """Raise `UserError` unless the autoencoder takes and gives images of these channels."""
    channels = images.describe()["channels"]
    takes = (vae.config.in_channels, vae.config.out_channels)
    if takes != (len(channels), len(channels)):
        raise UserError(
            f"the VAE takes {takes[0]} channels and gives {takes[1]}, but the images have {len(channels)} "
            f"({', '.join(map(str, channels))}); set data.channels to what it takes, or choose another VAE."
        )


def vae_factor(vae: AutoencoderKL) -> int:
    """Pixels per latent along each side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Latents ``(B, C, h, w)`` of images in [-1, 1]: what `AttnDiffPipeline.decode_latents` turns back into them."""
    mean = vae.encode(pixels).latent_dist.mean
    return (mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def vae_digest(vae: AutoencoderKL) -> str:
    """SHA-256 of an autoencoder's settings and weights."""
    settings = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


# The latents


class LatentSet(Rows):
    """The latents of an `ImageSet`, in its place: a row's image is latents, its texts and classes are what they are.

    Opening one encodes what is not in ``folder`` yet, in files whose folder is named by a hash of images, autoencoder
    and views, so that the latents of other images or another autoencoder are never taken for them. The processes of a
    run share the files out (each is written by one), then wait for one another.

    Args:
        images: The images.
        vae: The frozen autoencoder.
        folder: Where latents are kept.
        mirror: Whether to encode the mirrored images too: the mirrored latents of an image are something else.
        state: The processes that take part; those that Accelerate knows by default.

    Raises:
        UserError: If an image has no finite latents, or they cannot be written.
    """

    def __init__(
        self,
        images: ImageSet,
        vae: AutoencoderKL,
        folder: Path,
        mirror: bool = False,
        state: PartialState | None = None,
    ):
        state = state or PartialState()
        self.images, self.views = images, 1 + mirror
        # Of latents, no other column that shows something has the size.
        self.columns = tuple(column for column in images.columns if column == IMAGE or not column.is_planar)
        self.class_names, self.fingerprint = images.class_names, images.fingerprint  # the run's config has the rest
        size = images.describe()["size"]
        self.shape = (vae.config.latent_channels, *(side // vae_factor(vae) for side in size))
        alpha = [images.describe()["alpha"]] if "alpha" in images.describe() else []
        key = [FORMAT_VERSION, images.fingerprint, vae_digest(vae), size, self.views, *alpha]
        self.folder = folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        image_bytes = 4 * self.views * int(np.prod(self.shape))
        self.per_file = max(1, FILE_BYTES // image_bytes)
        self._encode_missing(vae, state)
        state.wait_for_everyone()
        self._kept = self._read_all() if len(images) * image_bytes <= CACHE_BYTES else None

    def _encode_missing(self, vae: AutoencoderKL, state: PartialState) -> None:
        """Write those of this process's files that are not there or not whole."""
        numbers = range(-(-len(self) // self.per_file))[state.process_index :: state.num_processes]
        missing = [number for number in numbers if not is_whole(self._file(number))]
        total = sum(len(self._indices(number)) for number in missing)
        with progress(None, "Encoding images", total, shown=state.is_main_process) as bar:
            for number in missing:
                write_latents(self._file(number), self._encode(vae, self._indices(number), bar))

    def _encode(self, vae: AutoencoderKL, indices: range, bar: tqdm) -> np.ndarray:
        """Latents ``(B, V, C, h, w)`` of a run of images."""
        size = self.images.describe()["size"]
        batch_size = min(64, max(1, BATCH_PIXELS // (size[0] * size[1])))
        batches = []
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            pixels = torch.from_numpy(np.stack([self.images[i][IMAGE.name] for i in batch])).to(vae.device)
            views = [pixels, pixels.flip(-1)][: self.views]
            latents = torch.stack([encode(vae, view) for view in views], dim=1).cpu()
            if not latents.isfinite().all():
                bad = next(i for i, latent in zip(batch, latents) if not latent.isfinite().all())
                raise UserError(f"the VAE gives no finite latents for {self.name(bad)}; choose another model.vae.")
            batches.append(latents.numpy())
            bar.update(len(batch))
        return np.ascontiguousarray(np.concatenate(batches))  # safetensors writes memory as it lies

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _indices(self, number: int) -> range:
        """The images of a file."""
        return range(len(self))[number * self.per_file : (number + 1) * self.per_file]

    def _read_all(self) -> torch.Tensor:
        # A tensor, as of that loader workers which are started anew are sent a handle and no copy.
        kept = torch.empty((len(self), self.views, *self.shape))
        for number in range(-(-len(self) // self.per_file)):
            indices = self._indices(number)
            with safe_open(self._file(number), framework="pt") as file:
                kept[indices.start : indices.stop] = file.get_tensor("latents")
        return kept

    def _view(self, i: int, view: int) -> np.ndarray:
        if self._kept is not None:
            return self._kept[i, view].numpy()
        number, offset = divmod(i, self.per_file)
        with safe_open(self._file(number), framework="np") as file:
            return file.get_slice("latents")[offset, view]

    def __len__(self) -> int:
        return len(self.images)

    def load(self, i: int, name: str) -> Any:
        """Latents ``(C, h, w)`` float32 for the image; everything else is that of the images."""
        return self._view(i, 0) if name == IMAGE.name else self.images.load(i, name)

    def mirror(self, row: Row, name: str) -> Any:
        """Of the mirrored image, the latents that it has."""
        return self._view(row.index, 1) if name == IMAGE.name else super().mirror(row, name)

    def by_shape(self) -> dict[Shape, np.ndarray]:
        return {self.shape[1:]: np.arange(len(self))}

    def name(self, i: int) -> str:
        return self.images.name(i)

    def cells(self, i: int) -> dict:
        return self.images.cells(i)

    def describe(self) -> dict:
        """What a pipeline keeps about its data: the images, not the latents."""
        return self.images.describe()

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name of each image that was left out, and why."""
        return self.images.skipped


def images_of(images: ImageSet | LatentSet) -> ImageSet:
    """The images themselves, whatever a run trains on."""
    return images.images if isinstance(images, LatentSet) else images


# Files of latents


def write_latents(path: Path, latents: np.ndarray) -> None:
    """Write a file that is either whole or absent; raises `UserError` if it cannot be written."""
    partial = path.with_name(f"{path.stem}.{uuid4().hex}{PARTIAL}")  # no other process writes to it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": latents}, partial, metadata={"sha256": latents_digest(latents)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"latents could not be written to {path} ({_one_line(error)}); choose another 'out'.") from None


def clear_partial(folder: Path) -> None:
    """Remove what writers that were killed have left; only for who holds the run's folder."""
    for left in folder.glob(f"*/*{PARTIAL}"):
        left.unlink()


def is_whole(path: Path) -> bool:
    """Whether a file of latents is there and as it was written."""
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata()["sha256"] == latents_digest(file.get_tensor("latents"))
    except (OSError, SafetensorError, KeyError, TypeError):
        return False


def latents_digest(latents: np.ndarray) -> str:
    """SHA-256 of an array's shape and values."""
    digest = hashlib.sha256(repr(latents.shape).encode())
    digest.update(latents)
    return digest.hexdigest()
