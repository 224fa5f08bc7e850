"""moco pack: a data set becomes tar shards."""

import shlex

from moco.cli.commands.common import print_on_main
from moco.cli.options import Pack
from moco.data import open_source
from moco.data.formats.pack import pack


def run(options: Pack) -> None:
    """Packs a data set into shards."""
    # Encoded images are packed as they are encoded, not as pixels.
    source = open_source(options.source, download=options.download, max_bad=1, cache_mb=0)
    packed = pack(
        source,
        options.out,
        size=options.size,
        format=options.format,
        quality=options.quality,
        images_per_shard=options.images_per_shard,
        workers=options.workers,
        max_bad=options.max_bad,
    )
    print_on_main(str(packed))
    print_on_main(f"train on them by:\n  moco pretrain RECIPE --data {shlex.quote(f'shards:{options.out}')}")
