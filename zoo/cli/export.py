"""The command `export`: writes a trained model to a file that runs without this package.

The checkpoint is read first. The options are then those of every model, and the keyword arguments of the method that
builds the part that is exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo._lightning import option_names
from zoo.cli.options import (
    CKPT_HELP,
    CONFIG_HELP,
    MODEL_CLASS_HELP,
    MODEL_HELP,
    add_options,
    add_overwrite,
    name_checkpoint,
    parse_without_checkpoint,
    typed_options,
)
from zoo.cli.own_networks import load_model_with_config
from zoo.cli.parser import OneLineParser
from zoo.cli.program import program
from zoo.errors import UserError, nearest
from zoo.files import check_output
from zoo.hub.export import export, find_format, find_part, part_methods
from zoo.hub.method_options import own_options

DESCRIPTION = "Exports a trained model to a file that runs without this package: ONNX, torch.export or safetensors."
MODEL_DECIDES = (
    f"{DESCRIPTION} A model may have further options: --ckpt_path FILE --help, or --model NAME --help, lists them."
)
#: Options of the command itself.
COMMON = ("ckpt_path", "out", "format", "part", "model", "model_class", "config", "overwrite")


def run_export(args: Sequence[str]) -> None:
    """Parses the command line, in two stages since the model decides on the options, and prints what was written."""
    words = name_checkpoint(args[1:])
    typed = typed_options(words)
    if not typed.get("ckpt_path"):
        parser = _start_parser(MODEL_DECIDES, "part of the model to export; the model decides which there are.")
        parse_without_checkpoint(parser, words)
    if typed.get("out"):  # before a large file is read
        find_format(check_output(Path(str(typed["out"])), "overwrite" in typed), typed.get("format"))
    model = load_model_with_config(str(typed["ckpt_path"]), typed.get("model_class"), typed.get("config"))
    part = find_part(model, typed.get("part"))
    parser = _build_parser(model, part, typed)
    given = parser.parse_args(words).as_dict()
    options = {name: value for name, value in given.items() if name not in COMMON and name in typed}
    print(export(model, given["out"], given["format"], part, given["overwrite"], **options))


def _start_parser(description: str, part_help: str) -> OneLineParser:
    parser = OneLineParser(prog=f"{program()} export", description=description)
    parser.add_argument("--ckpt_path", type=str, help=CKPT_HELP)
    parser.add_argument("--out", type=str, required=True, help="file to write: .onnx, .pt2 or .safetensors.")
    parser.add_argument(
        "--format", type=str, help="onnx, torch_export, or safetensors for weights only (default: by the ending)."
    )
    parser.add_argument("--part", type=str, help=part_help)
    add_overwrite(parser)
    parser.add_argument("--model", type=str, help=MODEL_HELP)
    parser.add_argument("--model_class", type=str, help=MODEL_CLASS_HELP)
    parser.add_argument("--config", type=str, help=CONFIG_HELP)
    return parser


def _build_parser(model: Any, part: str, typed: dict[str, str | None]) -> OneLineParser:
    """Parser of the options that a part has; raises a `UserError` for the first option that it does not have."""
    name, parts = type(model).__name__, list(part_methods(model))
    parser = _start_parser(DESCRIPTION, f"part of the {name}: {', '.join(parts)} (default: {parts[0]}).")
    own = own_options(type(model), f"export_{part}", ())
    if own:
        add_options(parser.add_argument_group(f"Options of the part {part} of {name}"), own.values())
    known = option_names(parser)
    for option in typed:
        if f"--{option}" not in known:
            mine = f"; its own options are {', '.join(f'--{one}' for one in own)}" if own else ""
            hint = nearest(f"--{option}", known, 0.75) or f": leave it out{mine}"
            raise UserError(f"--{option} has no effect on the part {part} of {name}{hint}")
    return parser
