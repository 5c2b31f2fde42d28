"""What pipelines share whose network sees a picture beside the noise, and a large one in tiles."""

import torch

from attndiff.diffusion.sampler import Predict, sampling_steps
from attndiff.diffusion.solver import Solver
from attndiff.diffusion.tiles import Tile, TiledNetwork, Tiles
from attndiff.pipelines.base import ImagePipeline
from attndiff.pipelines.call.conditioning import EncodedCondition
from attndiff.pipelines.call.options import CallOptions

# Sides of a tile beside those of the images that were learned from: with tiles as large as those, photographs come out
# worse and later, and larger tiles gain nothing.
AT_ONCE = 2


class TiledPipeline(ImagePipeline):
    """Make something of pictures that lie beside the noise; arguments as of `ImagePipeline`."""

    def side_of_tiles(self, tile_size: int | None, scale: int = 1) -> int:
        """Pixels a side of what the network sees at once, for the argument ``tile_size`` of a call.

        Args:
            tile_size: Pixels of the pictures that are given; None for `AT_ONCE` times as many as it learned from.
            scale: How many times as large the network sees them.

        Raises:
            ValueError: If the network could not be shown so little.
        """
        multiple = self.unet.size_multiple
        least = max(1, multiple // scale)
        if tile_size is None:
            side = AT_ONCE * max(self.image_size)
        elif isinstance(tile_size, int) and tile_size >= least:
            side = tile_size * scale
        else:
            raise ValueError(f"tile_size must be a whole number of pixels from {least}, not {tile_size!r}.")
        return -(-side // multiple) * multiple

    def made_beside(
        self, solver: Solver, encoded: EncodedCondition, options: CallOptions, aligned: torch.Tensor, side: int
    ) -> torch.Tensor:
        """What the network makes of ``aligned (B, A, H, W)``, in tiles that share a quarter of their sides.

        Of one step it is the mean of what may be, without noise and in one call a tile; of more a sample.

        Args:
            solver: From `calling`.
            encoded: From `encode`.
            options: Of the call.
            aligned: H and W multiples of the network's.
            side: From `side_of_tiles`.

        Returns:
            ``(B, C, H, W)``.
        """
        steps, tiles = options.num_inference_steps, Tiles(*aligned.shape[-2:], side, side // 4, self.unet.size_multiple)

        def of_tile(tile: Tile) -> Predict:
            progress.update()
            return self.guided_network(encoded, options, aligned[tile])

        size = aligned.shape[-2:]
        with self.progress_bar(total=steps * len(tiles)) as progress:
            network = TiledNetwork(tiles, of_tile)
            if steps == 1:
                none, level = aligned.new_zeros(len(aligned), self.unet.config.out_channels, *size), solver.level(0)
                return self.objective.denoised(none, network(none, level), level)
            noise = self.prepare_latents(len(aligned), *size, options.generator, None, solver.noise_scale)
            *_, last = sampling_steps(network, solver, noise, options.generator)
        return last.latents
