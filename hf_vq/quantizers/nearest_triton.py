"""The search on a GPU: scores and their two best in one kernel, which never writes them."""

import torch
import triton
import triton.language as tl

ROWS, CODES, WIDTH = 64, 128, 64  # of a tile; at most so wide


@triton.jit
def _best_two_kernel(
    latents,
    codebook,
    biases,
    best_out,
    code_out,
    second_out,
    num_rows,
    num_codes,
    width,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One tile of rows against all codes."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    second = tl.full((ROWS,), float("-inf"), tl.float32)
    code = tl.zeros((ROWS,), tl.int64)
    for first in range(0, num_codes, CODES):
        codes = first + tl.arange(0, CODES)
        real = codes < num_codes
        products = tl.zeros((ROWS, CODES), tl.float32)
        for left in range(0, width, WIDTH):
            columns = left + tl.arange(0, WIDTH)
            inside = columns < width
            x = tl.load(
                latents + rows[:, None].to(tl.int64) * width + columns[None, :],
                mask=(rows < num_rows)[:, None] & inside[None, :],
                other=0.0,
            )
            e = tl.load(
                codebook + codes[None, :].to(tl.int64) * width + columns[:, None],
                mask=real[None, :] & inside[:, None],
                other=0.0,
            )
            products = tl.dot(x, e, products, input_precision="ieee")
        bias = tl.load(biases + codes, mask=real, other=float("-inf"))
        scores = products + bias[None, :]
        tile_best = tl.max(scores, axis=1)
        places = tl.arange(0, CODES)[None, :]
        tile_code = tl.min(tl.where(scores == tile_best[:, None], places, CODES), axis=1)  # the lowest of equal ones
        tile_second = tl.max(tl.where(places == tile_code[:, None], float("-inf"), scores), axis=1)
        second = tl.maximum(tl.maximum(second, tile_second), tl.minimum(best, tile_best))
        better = tile_best > best
        code = tl.where(better, first + tile_code.to(tl.int64), code)
        best = tl.where(better, tile_best, best)
    tl.store(best_out + rows, best, mask=rows < num_rows)
    tl.store(code_out + rows, code, mask=rows < num_rows)
    tl.store(second_out + rows, second, mask=rows < num_rows)


def best_two(
    latents: torch.Tensor, codebook: torch.Tensor, biases: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Best score of each row, its code, and the second best score.

    Args:
        latents: (rows, dim) float32.
        codebook: (codebook_size, dim) float32.
        biases: (codebook_size,) float32, added to the dot products.

    Returns:
        best (rows,), codes (rows,) int64 and second (rows,). Of equal scores the lowest code wins. Rows with NaN or
        infinity get some code in range.
    """
    latents, codebook = latents.contiguous(), codebook.contiguous()
    rows, width = latents.shape
    best, second = latents.new_empty((2, rows))
    codes = torch.zeros(rows, dtype=torch.int64, device=latents.device)
    if rows:
        tile = max(16, min(WIDTH, triton.next_power_of_2(width)))
        _best_two_kernel[(triton.cdiv(rows, ROWS),)](
            latents, codebook, biases, best, codes, second, rows, len(codebook), width,
            ROWS=ROWS, CODES=CODES, WIDTH=tile,
        )  # fmt: skip
    return best, codes.clamp_max(len(codebook) - 1), second
