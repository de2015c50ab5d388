"""Which grid a table of positions is of, as far as the table itself tells.

Shapes: N positions of a grid, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

Grid = tuple[int, int]
MOST_CHANNELS = 256  # that are looked at
ADDED = 0.01  # share of the largest value: how far a sum of rows and columns, which fixed tables are, may be off
LEAST_ALIKE = 0.1  # correlation of neighbours in a table that was trained
LEAST_SURE = 3.5  # the same in standard deviations of a table of independent values
AHEAD = 0.1  # how far the grid of a trained table is ahead of others, as a share of what it could be


def grids_of(count: int) -> list[Grid]:
    """The grids of that many positions, squarest first; of one row or column only where there is no other."""
    rows_of = [rows for rows in range(1, math.isqrt(count) + 1) if count % rows == 0]
    all_of_it = {grid for rows in rows_of for grid in ((rows, count // rows), (count // rows, rows))}
    wide = {grid for grid in all_of_it if min(grid) > 1}
    return sorted(wide or all_of_it, key=lambda grid: (max(grid) / min(grid), grid))


def told_by(table: Tensor, grids: Sequence[Grid]) -> Grid | None:
    """The grid among several whose order the rows of a table [N, D] are in; None where they do not tell.

    Fixed sin-cos tables are a part for the row plus a part for the column, in the right grid alone. In trained tables
    neighbours are alike, more so than in any other grid. A square one is believed where it is the best; another one
    has to be clearly so. A table that is the same everywhere is of any grid.
    """
    table = table.detach()[:, :: -(-table.shape[1] // MOST_CHANNELS)].double().cpu()
    table = table - table.mean(dim=0)
    if not table.isfinite().all():
        return None
    if table.abs().max() < 1e-12:
        return grids[0]
    grids = [grid for grid in grids if min(grid) > 1]
    sums = [grid for grid in grids if _is_sum(table, grid)]
    if len(sums) == 1:
        return sums[0]
    alike = {grid: likeness(table, grid) for grid in sums or grids}
    if not alike:
        return None
    best, *others = sorted(alike, key=lambda grid: -alike[grid])
    if not sums and (alike[best] < LEAST_ALIKE or _sureness(table, best, alike[best]) < LEAST_SURE):
        return None
    ahead = AHEAD * min(alike[best], 1 - alike[best])
    if best[0] != best[1] and others and alike[best] - alike[others[0]] < ahead:
        return None
    return best


def likeness(table: Tensor, grid: Grid) -> float:
    """How alike neighbours of a grid are in a table [N, D] whose mean is 0: their correlation, 1 for equal ones."""
    on_grid = table.view(*grid, -1)
    down = (on_grid[1:] - on_grid[:-1]).square().sum(dim=-1).mean()
    along = (on_grid[:, 1:] - on_grid[:, :-1]).square().sum(dim=-1).mean()
    return float(1 - (down + along) / 4 / table.square().sum(dim=1).mean())


def _sureness(table: Tensor, grid: Grid, alike: float) -> float:
    """How many standard deviations that is above what rows in a random order would have."""
    count = len(table)
    of_rows = table.square().sum(dim=1)
    between = (table.T @ table).square().sum() - of_rows.square().sum()  # the products of different rows, squared
    typical = math.sqrt(max(float(between), 0.0) / (count * (count - 1)))
    rows, columns = grid
    deviation = math.sqrt(1 / (rows * (columns - 1)) + 1 / (columns * (rows - 1))) / 2 * typical / float(of_rows.mean())
    return (alike + 1 / (count - 1)) / max(deviation, 1e-12)


def _is_sum(table: Tensor, grid: Grid) -> bool:
    """Whether a table is a part for the row plus a part for the column."""
    on_grid = table.view(*grid, -1)
    left = on_grid - on_grid[:1] - on_grid[:, :1] + on_grid[:1, :1]
    return bool(left.abs().max() <= ADDED * table.abs().max())
