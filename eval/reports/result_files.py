"""The files that eval/detect.py and eval/segment.py write."""

from pathlib import Path

from demo_diffusion.records.files import check_output_file

DRAWINGS = (".png", ".jpg", ".jpeg")


def check_result_files(out: str | None, drawing: str | None, inputs: dict[str, str | None]) -> None:
    """Checks what --out and --drawing name.

    Args:
        inputs: option -> file or folder that the command reads.

    Raises:
        ValueError: if one cannot be written, is a file that the command reads, or they are the same.
    """
    if out is not None:
        check_output_file(Path(out), inputs=inputs)
    if drawing is not None:
        check_output_file(Path(drawing), DRAWINGS, option="--drawing", inputs=inputs)
    if out is not None and drawing is not None and Path(out).resolve() == Path(drawing).resolve():
        raise ValueError(f"--out and --drawing are the same file, {out}; give another one.")
