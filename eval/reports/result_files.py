"""The files that eval/detect.py and eval/segment.py write."""

from pathlib import Path

from demo_diffusion.records.files import check_output_file

DRAWINGS = (".png", ".jpg", ".jpeg")


def check_result_files(picture: str | None, out: str | None, drawing: str | None) -> None:
    """Raises ValueError if what --out or --drawing names cannot be written, or is another file of the command."""
    if out is not None:
        check_output_file(Path(out))
    if drawing is not None:
        check_output_file(Path(drawing), DRAWINGS, option="--drawing")
    given = {"--picture": picture, "--out": out, "--drawing": drawing}
    names: dict[Path, str] = {}
    for option, name in given.items():
        if name is not None and (other := names.setdefault(Path(name).resolve(), option)) != option:
            raise ValueError(f"{other} and {option} are the same file, {name}; give another one.")
