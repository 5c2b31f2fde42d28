"""Which sequences of an image attend to which, by what is in them (BiFormer, arXiv 2303.08810, section 3.2).

Shapes: B images, N sequences of an image, L tokens of a sequence, K sequences attended to, H heads, D channels a head.
"""

import torch


@torch.no_grad()
def best_sequences(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, sequences: int, routes: int
) -> torch.Tensor:
    """The sequences of its image whose mean key fits each sequence's mean query best (Eq. 3 to 5), heads together.

    Args:
        query: ``(B * N, L, H, D)``.
        key: ``(B * N, L, H, D)``.
        mask: ``(B * N, 1, 1, L)`` additive, -inf for tokens that do not count; or None.
        sequences: N.
        routes: K, at most N.

    Returns:
        ``(B * N * K,)``, their places among all ``B * N``, the best first.
    """
    query, key = (_means(x.flatten(2), mask).unflatten(0, (-1, sequences)) for x in (query, key))  # (B, N, H * D)
    best = (query @ key.transpose(1, 2)).topk(routes, dim=-1).indices  # (B, N, K)
    first = sequences * torch.arange(len(best), device=best.device)
    return (best + first[:, None, None]).flatten()


def _means(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Of tokens ``(B * N, L, C)`` those that count, ``(B * N, C)``."""
    if mask is None:
        return x.float().mean(1)
    counts = (mask[:, 0, 0] == 0).float()[..., None]  # (B * N, L, 1)
    return (x.float() * counts).sum(1) / counts.sum(1)


def gather_sequences(x: torch.Tensor, places: torch.Tensor, routes: int, dim: int) -> torch.Tensor:
    """For every sequence the tokens of those at ``places (B * N * K,)``, one after the other along ``dim``.

    ``x`` is ``(B * N, ...)`` with L tokens at ``dim``, and the result has K * L there.
    """
    gathered = x.index_select(0, places).unflatten(0, (-1, routes))  # (B * N, K, ..., L, ...)
    return gathered.movedim(1, dim).flatten(dim, dim + 1)
