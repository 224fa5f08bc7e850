"""What a recipe is, and how one of your own is read and written."""

from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from moco.runs.config import Config
from moco.runs.options import from_dict, to_dict
from moco.runtime.errors import UserError, one_line
from moco.runtime.files import write_whole


@dataclass(frozen=True)
class Recipe:
    about: str
    cost: str
    reaches: str
    config: Config
    source: str = "this project"

    @property
    def name(self) -> str:
        return self.config.recipe

    @property
    def command(self) -> str:
        spec = self.config.data.source
        return f"moco pretrain {self.name}" + ("" if spec == "shapes" else f" --data {spec}")


def read_recipe(path: Path) -> Recipe:
    """A recipe of one's own. Raises UserError for a file that is none."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as a recipe: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: is not a recipe (moco suggest writes one)")
    config = replace(from_dict(values, str(path), Config()), recipe=str(path))
    return Recipe(f"The recipe in {path}.", "not known", "not known", config, source=str(path))


def write_recipe(path: Path, config: Config, remarks: list[str]) -> None:
    """Writes a recipe that `read_recipe` reads, the remarks above it."""
    values = {name: part for name, part in to_dict(config).items() if name != "recipe"}
    text = "".join(f"# {remark}\n" for remark in remarks) + yaml.safe_dump(values, sort_keys=False)
    write_whole(path, lambda file: file.write(text.encode()))
