"""moco predict: images are classified by a run of moco finetune."""

from moco.cli.commands.common import TABLES, check_file, print_on_main, progress, together
from moco.cli.options import Predict
from moco.runtime.device import choose_device
from moco.runtime.ranks import is_main, on_main
from moco.training import start_logging
from moco.transfer.classification.load import load_classifier
from moco.transfer.classification.predict import prediction_table, predictions, write_predictions
from moco.transfer.images import image_paths


def run(options: Predict) -> None:
    """Prints the likeliest classes of images, and writes them as CSV or JSON."""
    out, compute = options.out, options.compute
    check_file("--out", out, TABLES, options.overwrite)
    with together():
        start_logging(None, is_main())
        device = choose_device(compute.device, compute.precision, compute.channels_last)
        trained = load_classifier(options.run)
        paths = image_paths(options.images)
        probabilities, places = trained.of_files(paths, device, compute.workers, progress("images"))
        found = predictions(probabilities, places, paths, trained.classes, options.top)
        on_main(lambda: write_predictions(found, out))
        print_on_main(prediction_table(found))
        unread = f", {len(paths) - len(found):,} cannot be read" if len(found) < len(paths) else ""
        print_on_main(f"{len(found):,} images{unread}; written to {out}")
