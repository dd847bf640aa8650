"""Draw the picture of the documentation: one radiograph a finding, training family above, test family below.

Run by `python -m training.chest_radiograph.picture`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from phantoms.radiograph import FINDINGS, TEST, TRAINING, make_radiograph

_ROWS, _COLUMNS, _TITLE = 320, 280, 16


def main(path: Path = Path("docs/models/chest-radiograph-demo.jpg"), seed: int = 31) -> None:
    """Write the grid."""
    columns: list[tuple[str, ...]] = [(), *((name,) for name in FINDINGS)]
    sheet = Image.new("L", (_COLUMNS * len(columns), (_ROWS + _TITLE) * 2))
    pen = ImageDraw.Draw(sheet)
    for j, style in enumerate((TRAINING, TEST)):
        for i, findings in enumerate(columns):
            phantom = make_radiograph(seed + 100 * j + i, findings, shape=(2 * _ROWS, 2 * _COLUMNS), style=style)
            size = phantom.truth[findings[0]] if findings else None
            label = f"{style.name}: {findings[0]} {size.size_mm:.0f} mm" if size else f"{style.name}: none"
            tile = Image.fromarray((phantom.pixels / 4095 * 255).astype(np.uint8)).resize((_COLUMNS, _ROWS))
            sheet.paste(tile, (i * _COLUMNS, j * (_ROWS + _TITLE) + _TITLE))
            pen.text((i * _COLUMNS + 4, j * (_ROWS + _TITLE) + 2), label, fill=255)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=82)


if __name__ == "__main__":
    main()
