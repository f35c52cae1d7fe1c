"""Whether the first layers should read everything: KL over bytes for 0, 1, 2 dense layers and a mass to be kept.

python benchmarks/dense_layers.py --texts book.txt wiki.txt --layers 0 1 2 --quality 0.95
"""

from __future__ import annotations

from functools import partial

import torch
from variants import Reading, arguments, prepared, show

from hgca_cli.attention.select import make_selector
from hgca_cli.config import CacheSettings


@torch.inference_mode()
def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--select", default="scan")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quality", type=float, nargs="+", default=[0.95])
    options = parser.parse_args()
    loaded, texts = prepared(options)
    readings = [Reading(loaded, ids, options.positions, options.window) for ids in texts]
    for quality in options.quality:
        for layers in options.layers:
            settings = CacheSettings(
                context=options.ctx + 1, select=options.select, quality=quality, dense_layers=layers
            )
            policy = partial(make_selector, settings)
            show(f"{options.select} quality={quality:g} dense={layers}", [one.follow(policy) for one in readings])


if __name__ == "__main__":
    main()
