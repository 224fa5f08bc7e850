"""MoCo v3's changes to a ViT: a frozen patch projection, and a fixed sine-cosine position embedding."""

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from moco.runtime.errors import UserError


def vit_s_16() -> VisionTransformer:
    """MoCo v3's ViT-S/16 (its Table 2): 12 blocks of width 384 with 12 heads, where timm's and DeiT's have 6."""
    return VisionTransformer(image_size=224, patch_size=16, num_layers=12, num_heads=12, hidden_dim=384, mlp_dim=1536)


def patch_projection(encoder: nn.Module) -> nn.Module | None:
    """The linear layer that maps patches to tokens, of torchvision's ViT or timm's; None where there is none."""
    found = getattr(encoder, "conv_proj", None) or getattr(getattr(encoder, "patch_embed", None), "proj", None)
    return found if isinstance(found, nn.Conv2d | nn.Linear) else None


def fixed_size(encoder: nn.Module) -> int | None:
    """The only image size that a ViT of torchvision or timm takes, as its position embedding is of that size."""
    size = getattr(encoder, "image_size", None) or getattr(getattr(encoder, "patch_embed", None), "img_size", None)
    size = size[0] if isinstance(size, tuple) else size
    return size if isinstance(size, int) else None


def freeze_patches(encoder: nn.Module, name: str) -> None:
    """Freezes the patch projection at its present weights, and makes the position embedding one of sines and cosines.

    Neither gets a gradient from then on (MoCo v3, section 4.2 and its appendix). Positions that are not added to the
    tokens, as relative ones, are left alone. Raises UserError for an encoder without a patch projection, or with
    positions on another grid.
    """
    projection = patch_projection(encoder)
    if projection is None:
        raise UserError(f"--freeze-patches: {name} is not a ViT and has no patch projection: --no-freeze-patches")
    projection.requires_grad_(False)
    grid: tuple[int, int] | None
    if isinstance(encoder, VisionTransformer):
        side = encoder.image_size // encoder.patch_size
        embedding, grid = encoder.encoder.pos_embedding, (side, side)
    else:
        embedding, grid = getattr(encoder, "pos_embed", None), getattr(encoder.patch_embed, "grid_size", None)
    if isinstance(embedding, nn.Parameter):
        _fix_positions(embedding, grid, name)


def _fix_positions(embedding: nn.Parameter, grid: tuple[int, int] | None, name: str) -> None:
    """Fills (1, tokens, dim) with waves; the tokens before those of the grid, such as the class token, have zeros."""
    shape = tuple(embedding.shape)
    if grid is None or len(shape) != 3 or (others := shape[1] - grid[0] * grid[1]) < 0 or shape[2] % 4:
        raise UserError(
            f"--freeze-patches: {name} has a position embedding of shape {shape}, which is not one of a grid"
        )
    with torch.no_grad():
        embedding.zero_()[0, others:] = sine_cosine(*grid, shape[2])
    embedding.requires_grad_(False)


def sine_cosine(height: int, width: int, dim: int) -> Tensor:
    """Positions on a grid, row by row, as waves: float32 (height * width, dim).

    A quarter of the dimensions each has sin(w_i x), cos(w_i x), sin(w_i y), cos(w_i y), where w_i falls from 1 towards
    1/10000 geometrically. `dim` is a multiple of 4.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
